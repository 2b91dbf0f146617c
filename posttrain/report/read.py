"""A run directory as the report reads it: finished stages that belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.artefacts import (
    EVALUATION,
    PROMPTS,
    SAMPLES,
    EvaluationResult,
    SuiteResult,
    outcomes_name,
    read_added_prompts,
    read_evaluation,
    read_suites,
    rollout_tables,
)
from posttrain.records import Prompt, RolloutGroup, Sample
from posttrain.run_directory import SUMMARY, FinishedStage, RunDirectory, read_json_object
from posttrain.tables import read_groups, read_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Small files of a run directory, and its finished stages."""

    path: Path
    name: str
    recipe_text: str | None
    recipe: Mapping[str, Any]
    """Contents of recipe.resolved.json; empty without one."""
    environment: Mapping[str, Any]
    stages: Mapping[str, FinishedStage]
    """Finished stages by name (`eval-base`, `sft`, ...), in order."""

    def file(self, stage: str, name: str) -> Path | None:
        """Return the path of a finished stage's file; None where stage or file is missing."""
        return self.stages[stage].file(name) if stage in self.stages else None

    @property
    def evaluations(self) -> dict[str, FinishedStage]:
        """Return finished evaluations by point (`base`, `sft`, ...), in order."""
        return {
            name.removeprefix(EVALUATION): stage
            for name, stage in self.stages.items()
            if name.startswith(EVALUATION)
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """Results of one suite after each stage, in order."""

    suite: str
    groups: Mapping[str, Sequence[RolloutGroup]]
    """Groups by point (`base`, `sft`, ...)."""
    results: Mapping[str, SuiteResult]
    """Results by point."""


def read_run(run_dir: Path) -> Run:
    """Read the small files of `run_dir`.

    Left out are stages without a readable manifest, which have not finished, and those that a
    newer run of an earlier stage has made void. Raises ValueError where `run_dir` is no run
    directory.
    """
    place = RunDirectory(path=run_dir)
    if not place.stages.is_dir():
        raise ValueError(
            f"{run_dir} is no run directory: it has no stages/ folder; give the folder of a "
            "`posttrain run`"
        )
    recipe = _object_or_empty(place.resolved_recipe)
    return Run(
        path=run_dir,
        name=str(recipe.get("name") or run_dir.resolve().name),
        recipe_text=place.recipe.read_text(encoding="utf-8") if place.recipe.is_file() else None,
        recipe=recipe,
        environment=_object_or_empty(place.environment),
        stages=_of_one_line(place.finished_stages()),
    )


def _of_one_line(stages: Mapping[str, FinishedStage]) -> dict[str, FinishedStage]:
    """Leave out stages that were made from an older stage than the one there now.

    While a stage runs again, its successors are still the old ones.
    """
    kept: dict[str, FinishedStage] = {}
    for name, stage in stages.items():
        upstream: Mapping[str, str] = stage.manifest.key_parts.get("upstream", {})
        there = [other for other in upstream if other in stages]
        if all(o in kept and kept[o].manifest.key == upstream[o] for o in there):
            kept[name] = stage
    return kept


def read_prompts(run: Run) -> dict[str, Prompt]:
    """Read every prompt by prompt_id: of the data stage, suites included, and made during RL."""
    found: list[Prompt] = []
    if run.file("data", PROMPTS.name) is not None:
        found += PROMPTS.read(run.stages["data"].path)
    if "data" in run.stages:
        found += read_suites(run.stages["data"].path)
    if "rl" in run.stages:
        found += read_added_prompts(run.stages["rl"].path)
    return {prompt.prompt_id: prompt for prompt in found}


def read_samples(run: Run) -> dict[str, Sample]:
    """Read every sample of the data stage by sample_id."""
    if run.file("data", SAMPLES.name) is None:
        return {}
    return {sample.sample_id: sample for sample in SAMPLES.read(run.stages["data"].path)}


def read_evaluations(run: Run) -> dict[str, EvaluationResult]:
    """Read the results of every evaluation by point, in order."""
    return {
        point: read_evaluation(stage.path)
        for point, stage in run.evaluations.items()
        if stage.file(SUMMARY) is not None
    }


def read_evaluated(run: Run) -> list[Evaluated]:
    """Read every suite that was measured at least once, `heldout` first."""
    results = read_evaluations(run)
    names = list(dict.fromkeys(name for result in results.values() for name in result.suites))
    evaluated: list[Evaluated] = []
    for suite in sorted(names, key=lambda name: (name != "heldout", names.index(name))):
        there = {p: result.suites[suite] for p, result in results.items() if suite in result.suites}
        files = {p: run.evaluations[p].file(outcomes_name(suite)) for p in there}
        groups = {p: read_groups(path) for p, path in files.items() if path is not None}
        evaluated.append(Evaluated(suite=suite, groups=groups, results=there))
    return evaluated


def read_rows(path: Path | None) -> list[dict[str, Any]]:
    """Read a table's rows; none where there is no file."""
    return [] if path is None else read_table(path)


def rollout_steps(run: Run) -> list[Path]:
    """Return the RL stage's rollout tables in step order."""
    return rollout_tables(run.stages["rl"].path) if "rl" in run.stages else []


def series(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """Return (step, value) of a metric, which rows have with or without a namespace."""
    return [
        (float(row["step"]), float(value))
        for row in rows
        for key, value in row.items()
        if (key == name or key.partition("/")[2] == name)
        and isinstance(value, (int, float))
        and "step" in row
    ]


def _object_or_empty(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}
