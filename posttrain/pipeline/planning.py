"""Plan a run: which stages are finished, which run, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.pipeline.keys import (
    changed_parts,
    stage_key,
    stage_key_parts,
    stage_seed,
)
from posttrain.pipeline.stage import Stage
from posttrain.pipeline.work import work_key
from posttrain.recipe import LoadedRecipe
from posttrain.run_directory import FileHashes, RunDirectory, verify_stage


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStage:
    """A stage, and what a run does with it."""

    stage: Stage[Any]
    number: int
    """Position in the table, from 1."""
    section: Any
    """The stage's section of the recipe."""
    key: str
    key_parts: Mapping[str, Any]
    seed: int
    is_cached: bool
    is_broken: bool
    """True if its directory exists and does not verify."""
    is_resumed: bool
    """True if unfinished work with the same key exists."""
    why: str
    """Reason why it runs; empty if it is cached."""


def plan(
    loaded: LoadedRecipe, run_dir: RunDirectory, table: Sequence[Stage[Any]], hashes: FileHashes
) -> list[PlannedStage]:
    """Return every stage of the recipe in order; write nothing."""
    planned: list[PlannedStage] = []
    upstream: dict[str, str] = {}
    for number, stage in enumerate(table, start=1):
        section = stage.section(loaded.recipe)
        if section is not None:
            parts = stage_key_parts(stage, loaded, section, upstream, hashes)
            planned.append(_planned(loaded, run_dir, stage, number, section, parts, hashes))
            upstream[stage.name] = planned[-1].key
    return planned


def _planned(
    loaded: LoadedRecipe,
    run_dir: RunDirectory,
    stage: Stage[Any],
    number: int,
    section: Any,
    key_parts: Mapping[str, Any],
    hashes: FileHashes,
) -> PlannedStage:
    key = stage_key(key_parts)
    folder = run_dir.find_stage(stage.name)
    is_broken = False
    why = "not run yet"
    if folder is not None:
        manifest, wrong = verify_stage(folder, hashes)
        if manifest is None:
            is_broken, why = True, f"its directory does not verify: {wrong}"
        else:
            why = "" if manifest.key == key else _changes(manifest.key_parts, key_parts)
    return PlannedStage(
        stage=stage,
        number=number,
        section=section,
        key=key,
        key_parts=key_parts,
        seed=stage_seed(stage, loaded.recipe.seed),
        is_cached=why == "",
        is_broken=is_broken,
        is_resumed=why != "" and work_key(run_dir, stage.name) == key,
        why=why,
    )


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if "version" not in old:
        return "made by an earlier posttrain, which recorded no version of the stage"
    changes = changed_parts(old, new)
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    return f"changed: {', '.join(changes[:3])}{more}"
