"""A run directory as values: what is there, and in words what is not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.records import Prompt, RolloutGroup, Sample
from posttrain.tables import DamagedFile, read_groups, read_json, read_records, read_table

EVAL_POINTS = ("base", "sft", "rl", "dpo")
MACRO = "macro average"
_STAGE_DIR = re.compile(r"(\d+)-([a-z-]+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One finished stage: its directory, its manifest and its summary."""

    number: int
    name: str
    path: Path
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run directory holds."""

    path: Path
    name: str
    recipe_text: str | None
    recipe: Mapping[str, Any]
    """recipe.resolved.json; empty where there is none."""
    environment: Mapping[str, Any]
    stages: Mapping[str, Stage]
    """By name (`eval-base`, `sft`, ...), in their order."""

    def file(self, stage: str, name: str) -> Path | None:
        """The path of a finished stage's file, None where stage or file is missing."""
        if stage not in self.stages:
            return None
        path = self.stages[stage].path / name
        return path if path.exists() else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """One suite as measured after each stage, in order."""

    suite: str
    groups: Mapping[str, Sequence[RolloutGroup]]
    """Point (`base`, `sft`, ...) -> its groups."""
    summaries: Mapping[str, Mapping[str, Any]]
    """Point -> summary.json's entry for this suite."""
    totals: Mapping[str, Mapping[str, Any]]
    """Point -> the whole stage's summary (tokens, seconds)."""


def read_run(run_dir: Path) -> Run:
    """Read the small files of `run_dir`.

    Left out are stages without a readable manifest, which have not finished, and those that a
    newer run of an earlier stage has made void.

    Errors: ValueError where `run_dir` is no run directory.
    """
    stages_dir = run_dir / "stages"
    if not stages_dir.is_dir():
        raise ValueError(
            f"{run_dir} is no run directory: it has no stages/ folder; give the folder of a "
            "`posttrain run`"
        )
    stages: dict[str, Stage] = {}
    found = [
        (int(m[1]), m[2], p) for p in stages_dir.iterdir() if (m := _STAGE_DIR.fullmatch(p.name))
    ]
    for number, name, path in sorted(found):
        if (manifest := read_facts(path)) is not None:
            stages[name] = Stage(
                number=number,
                name=name,
                path=path,
                manifest=manifest,
                summary=_json_or_empty(path / "summary.json"),
            )
    recipe_path = run_dir / "recipe.yaml"
    recipe = _json_or_empty(run_dir / "recipe.resolved.json")
    return Run(
        path=run_dir,
        name=str(recipe.get("name") or run_dir.resolve().name),
        recipe_text=recipe_path.read_text(encoding="utf-8") if recipe_path.is_file() else None,
        recipe=recipe,
        environment=_json_or_empty(run_dir / "environment.json"),
        stages=_of_one_line(stages),
    )


def read_facts(stage: Path) -> dict[str, Any] | None:
    """The manifest of a stage's folder; None where there is none that can be read."""
    try:
        manifest = read_json(stage / "MANIFEST.json")
        float(manifest["seconds"])
        return {"peak_rss_bytes": None, "counts": {}, **manifest, "stage": str(manifest["stage"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of_one_line(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """The stages without those that were made from an older one than lies there now.

    While a stage runs anew, its successors are still the old ones.
    """
    kept: dict[str, Stage] = {}
    for name, stage in stages.items():
        upstream: Mapping[str, str] = stage.manifest.get("key_parts", {}).get("upstream", {})
        there = [other for other in upstream if other in stages]
        if all(o in kept and kept[o].manifest.get("key") == upstream[o] for o in there):
            kept[name] = stage
    return kept


def read_prompts(run: Run) -> dict[str, Prompt]:
    """Every prompt by prompt_id: of the data stage, suites included, and made during RL."""
    prompts: dict[str, Prompt] = {}
    if (training := run.file("data", "prompts.parquet")) is not None:
        prompts.update({p.prompt_id: p for p in read_records(training, Prompt)})
    for stage, name in (("data", "suites"), ("rl", "prompts")):
        folder = run.file(stage, name)
        for path in sorted(folder.glob("*.parquet")) if folder else ():
            prompts.update({p.prompt_id: p for p in read_records(path, Prompt)})
    return prompts


def read_samples(run: Run) -> dict[str, Sample]:
    """Every sample of the data stage by sample_id."""
    path = run.file("data", "samples.parquet")
    return {} if path is None else {s.sample_id: s for s in read_records(path, Sample)}


def read_evaluated(run: Run) -> list[Evaluated]:
    """Every suite that was measured at least once, `heldout` first."""
    points = [p for p in EVAL_POINTS if f"eval-{p}" in run.stages]
    names: list[str] = []
    for point in points:
        for name in run.stages[f"eval-{point}"].summary.get("suites", {}):
            if name not in names:
                names.append(name)
    evaluated: list[Evaluated] = []
    for suite in sorted(names, key=lambda n: (n != "heldout", names.index(n))):
        there = [p for p in points if suite in run.stages[f"eval-{p}"].summary.get("suites", {})]
        files = {p: run.file(f"eval-{p}", f"outcomes-{suite}.parquet") for p in there}
        evaluated.append(
            Evaluated(
                suite=suite,
                groups={p: read_groups(path) for p, path in files.items() if path is not None},
                summaries={p: run.stages[f"eval-{p}"].summary["suites"][suite] for p in there},
                totals={p: run.stages[f"eval-{p}"].summary for p in there},
            )
        )
    return evaluated


def read_rows(path: Path | None) -> list[dict[str, Any]]:
    """A table's rows; none where there is no file."""
    return [] if path is None else read_table(path)


def rollout_steps(run: Run) -> list[Path]:
    """The RL stage's rollout tables in step order."""
    folder = run.file("rl", "rollouts")
    return [] if folder is None else sorted(folder.glob("step-*.parquet"))


def series(rows: Sequence[Mapping[str, Any]], *names: str) -> list[tuple[float, float]]:
    """(step, value) of the first of `names` that any row has, with or without its namespace."""
    for name in names:
        points = [
            (float(row["step"]), float(value))
            for row in rows
            for key, value in row.items()
            if (key == name or key.partition("/")[2] == name)
            and isinstance(value, (int, float))
            and "step" in row
        ]
        if points:
            return points
    return []


def _json_or_empty(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise DamagedFile(f"{path} should hold a JSON object, it holds {json.dumps(value)[:60]}")
    return value  # pyright: ignore[reportUnknownVariableType]
