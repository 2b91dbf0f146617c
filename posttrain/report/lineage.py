"""Lineage of the numbers: recipe, stage keys, files, versions, seeds, time and memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.artefacts import MODEL
from posttrain.report.blocks import (
    Block,
    Cell,
    Facts,
    Figure,
    Note,
    Panel,
    Section,
    Source,
    Table,
    TableRow,
    counted,
    duration,
    number,
    size,
    text_row,
)
from posttrain.report.charts import bars
from posttrain.report.read import Run
from posttrain.report.svg import stage_colour
from posttrain.run_directory import MANIFEST
from posttrain.tables import read_json


def timing_section(run: Run) -> Section:
    """Return the section on seconds and peak memory by stage."""
    finished = list(run.stages.values())
    if not finished:
        nothing = [Note("No stage has finished.")]
        return Section(slug="timing", title="Time and memory", blocks=nothing)
    seconds = [s.manifest.seconds for s in finished]
    peak = max(s.manifest.peak_rss_bytes or 0 for s in finished)
    rows = [(s.name, t, duration(t)) for s, t in zip(finished, seconds, strict=True)]
    colours = [stage_colour(s.name) for s in finished]
    said = "; ".join(f"{name} {text}" for name, _, text in rows)
    svg = bars(rows, colours=colours, label=f"Time per stage: {said}")
    figure = Figure(
        title=f"{duration(sum(seconds))} in all", panels=[Panel("", svg=svg)], wide=True
    )
    table = Table(
        title="Stage by stage",
        header=["stage", "time", "peak memory", "rows and counts"],
        rows=[
            TableRow(
                head=s.name,
                cells=[
                    Cell(duration(t)),
                    Cell(size(s.manifest.peak_rss_bytes)),
                    Cell(", ".join(counted(s.manifest.counts)), numeric=False),
                ],
            )
            for s, t in zip(finished, seconds, strict=True)
        ],
        foot=[text_row("all", duration(sum(seconds)), size(peak or None), "")],
        caption="Peak memory is the resident set of the stage's own processes.",
    )
    return Section(slug="timing", title="Time and memory", blocks=[figure, table])


def section(run: Run) -> Section:
    """Return the section on recipe, stages with keys and files, and environment."""
    blocks: list[Block] = []
    model = run.file("model", MODEL)
    if model is not None:
        blocks.append(Source("Base model: model.json", model.read_text(encoding="utf-8")))
    blocks.append(
        Facts(
            "Stage keys",
            items=[(s.name, s.manifest.key) for s in run.stages.values()],
        )
    )
    if own := user_functions(run):
        blocks.append(Facts("Your own functions: sha256 of their files", items=own))
    if run.recipe_text is None:
        blocks.append(Note("recipe.yaml is missing."))
    else:
        blocks.append(Source("Recipe, as written", run.recipe_text))
    for title, value in (
        ("Recipe, as resolved (recipe.resolved.json)", run.recipe),
        ("Environment (environment.json)", run.environment),
    ):
        name = title.rpartition("(")[2].rstrip(")")
        blocks.append(Source(title, pretty(value)) if value else Note(f"{name} is missing."))
    for stage in run.stages.values():
        title = f"{stage.path.name}: {MANIFEST}"
        blocks.append(Source(title, pretty(read_json(stage.path / MANIFEST))))
    return Section(slug="lineage", title="Lineage", blocks=blocks)


def user_functions(run: Run) -> list[tuple[str, str]]:
    """Return the files of the user's own functions, by recipe key, with their hashes."""
    inputs: dict[str, str] = {}
    for stage in run.stages.values():
        inputs |= stage.manifest.key_parts.get("inputs", {})
    own = (".verifier.python", ".corner_cases.")
    return [(key, hashed) for key, hashed in inputs.items() if any(part in key for part in own)]


def versions(run: Run) -> list[tuple[str, str]]:
    """Return package versions in environment.json."""
    found = run.environment.get("packages") or {}
    return [(str(k), str(v)) for k, v in found.items()] if isinstance(found, Mapping) else []


def facts(run: Run) -> list[tuple[str, str]]:
    """Return the facts of the line under the page's title."""
    items = [("base model", base_model(run.recipe)), ("seed", number(run.recipe.get("seed", 0)))]
    if run.environment.get("commit"):
        items.append(("commit", str(run.environment["commit"])[:12]))
    packages = dict(versions(run))
    items += [(k, packages[k]) for k in ("posttrain", "torch", "trl", "vllm") if packages.get(k)]
    return items


def base_model(recipe: Mapping[str, Any]) -> str:
    """Describe the base model; of a path only its last part, because pages are passed on."""
    base = (recipe.get("model") or {}).get("base")
    if not isinstance(base, Mapping):
        return _source(base)
    made = base.get("upcycle") or {}
    source = _source(made.get("from"))
    every = _nth(made.get("every", 2))
    return f"{source}, upcycled to {made.get('experts', '?')} experts in every {every}layer"


def _source(source: Any) -> str:
    if not source:
        return "unknown"
    path = Path(str(source))
    if path.is_absolute() or str(source).startswith((".", "~")) or path.exists():
        return f"{path.name} (a local path)"
    return str(source)


def pretty(value: Any) -> str:
    """Format a value as indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False)


def _nth(every: int) -> str:
    return {1: "", 2: "second ", 3: "third "}.get(every, f"{every}th ")
