"""What a run would do: which stages are finished, which run, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.pipeline.keys import FileHashes, all_key_parts, changed_parts, stage_key, stage_seed
from posttrain.pipeline.manifest import read_manifest
from posttrain.pipeline.rundir import RunDir, work_key
from posttrain.pipeline.stages import Stage, stages_of
from posttrain.recipe import LoadedRecipe


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStage:
    """One stage and what a run does with it."""

    stage: Stage
    key: str
    key_parts: Mapping[str, Any]
    seed: int
    is_cached: bool
    is_broken: bool
    """Its directory is there and does not verify."""
    is_resumed: bool
    """Unfinished work with these settings is there."""
    why: str
    """Why it runs, in words; empty where it is cached."""


def plan(
    loaded: LoadedRecipe, run_dir: RunDir, table: Sequence[Stage], hashes: FileHashes
) -> list[PlannedStage]:
    """Every stage of the recipe, in order; reads only."""
    parts = all_key_parts(loaded, table, hashes)
    return [
        _planned(loaded, run_dir, stage, parts[stage.name], hashes)
        for stage in stages_of(loaded.recipe, table)
    ]


def _planned(
    loaded: LoadedRecipe,
    run_dir: RunDir,
    stage: Stage,
    key_parts: Mapping[str, Any],
    hashes: FileHashes,
) -> PlannedStage:
    key = stage_key(key_parts)
    folder = run_dir.stage(stage)
    is_broken = False
    why = "not run yet"
    if folder.exists():
        manifest, wrong = read_manifest(folder, hashes)
        if manifest is None:
            is_broken, why = True, f"its directory does not verify: {wrong}"
        elif manifest["key"] == key:
            why = ""
        else:
            changes = changed_parts(manifest["key_parts"], key_parts)
            more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            why = f"changed: {', '.join(changes[:3])}{more}"
    is_resumed = why != "" and work_key(run_dir, stage) == key
    return PlannedStage(
        stage=stage,
        key=key,
        key_parts=key_parts,
        seed=stage_seed(stage, loaded.recipe.seed),
        is_cached=why == "",
        is_broken=is_broken,
        is_resumed=is_resumed,
        why=why,
    )
