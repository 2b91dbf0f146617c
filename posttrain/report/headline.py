"""The first section: what each stage did to held-out answers, and whether it is beyond chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from posttrain.artefacts import BASE
from posttrain.metrics import Interval
from posttrain.recipe.schema import training_stages
from posttrain.records import Prompt
from posttrain.report.blocks import (
    NBSP,
    Block,
    Cell,
    Figure,
    Note,
    Panel,
    Prose,
    Section,
    Table,
    TableRow,
    duration,
    number,
    percent,
    plural,
    points,
    small_multiples,
    text_row,
)
from posttrain.report.changes import Change, change_table, measured_changes
from posttrain.report.charts import stage_dots
from posttrain.report.inert import plain
from posttrain.report.read import Evaluated, Run
from posttrain.report.results import MACRO, ResultRow, result_rows


def section(run: Run, evaluated: Sequence[Evaluated], prompts: Mapping[str, Prompt]) -> Section:
    """Return the headline section: a table, a figure and the differences for every suite."""
    blocks: list[Block] = []
    if not evaluated:
        blocks.append(Note("There are no results yet: the run has no finished evaluation."))
    for suite in evaluated:
        changes = measured_changes(suite, prompts)
        blocks.append(stage_table(suite))
        if missing := [p for p in expected_points(run) if p not in suite.results]:
            blocks.append(Note(f"Not measured on {suite.suite}: {', '.join(missing)}."))
        blocks.append(figure(suite))
        if changes:
            blocks.append(change_table(suite.suite, changes))
        elif len(suite.results) > 1:
            blocks.append(
                Note(
                    f"No paired differences on {suite.suite}, because "
                    f"outcomes-{suite.suite}.parquet is missing."
                )
            )
    blocks.extend(Prose(text) for text in method(run, evaluated))
    return Section(slug="result", title="What each stage did", blocks=blocks)


def expected_points(run: Run) -> list[str]:
    """Return the points that the recipe asks to be measured and that it has a stage for."""
    asked = (run.recipe.get("eval") or {}).get("after") or ()
    return [
        point
        for point in (BASE, *training_stages())
        if point in asked and (point == BASE or run.recipe.get(point) is not None)
    ]


def capability_names(suite: Evaluated) -> list[str]:
    """Return every capability of a suite, sorted."""
    return sorted({name for result in suite.results.values() for name in result.capabilities})


def stage_table(suite: Evaluated) -> Table:
    """Return capability x stage: pass@1 with its interval, pass@k, and the best constant answer."""
    results = suite.results.values()
    return Table(
        title=f"Suite {plain(suite.suite)}: pass@1 after each stage",
        header=["capability", *suite.results, "best constant answer"],
        rows=[_table_row(suite, name) for name in (MACRO, *capability_names(suite))],
        foot=[
            text_row("tokens generated", *(number(result.tokens) for result in results), ""),
            text_row("seconds", *(duration(result.seconds) for result in results), ""),
        ],
        caption="Large: pass@1. Below it: its 95 % interval, then pass@k.",
    )


def _measured(suite: Evaluated) -> dict[tuple[str, str], ResultRow]:
    """Return the results by point and capability, the average included."""
    return {(row.point, row.capability): row for row in result_rows(suite.results, {})}


def _table_row(suite: Evaluated, capability: str) -> TableRow:
    measured = _measured(suite)
    cells: list[Cell] = []
    constants: list[float] = []
    num_prompts = 0
    for point in suite.results:
        found = measured.get((point, capability))
        if found is None:
            cells.append(Cell("\u2013"))
            continue
        sub = _range(found.pass_at_1)
        for k, value in sorted(found.pass_at_k.items()):
            if not math.isnan(value):
                sub += f"\npass@{k}{NBSP}{percent(value)}"
        cells.append(Cell(percent(found.pass_at_1.mean), sub=sub))
        constants += [] if math.isnan(found.constant) else [found.constant]
        num_prompts = max(num_prompts, found.num_prompts)
    cells.append(Cell(percent(max(constants)) if constants else "\u2013"))
    is_average = capability == MACRO
    head = MACRO if is_average else f"{capability}\n{plural(num_prompts, 'prompt')}"
    return TableRow(head=head, cells=cells, strong=is_average)


def figure(suite: Evaluated) -> Figure:
    """Return one panel per capability, the macro average first."""
    highs = [row.pass_at_1.high for row in _measured(suite).values()]
    top = min(1.0, max((h for h in highs if not math.isnan(h)), default=1.0) * 1.08 + 0.02)
    panels = [_panel(suite, name, top) for name in (MACRO, *capability_names(suite))]
    return small_multiples(
        "pass@1 by stage",
        panels,
        caption="Dot: pass@1. Band: 95 % interval. Dashed: the best constant answer. All panels "
        "have the same scale.",
    )


def _panel(suite: Evaluated, capability: str, top: float) -> Panel:
    rows: list[dict[str, Any]] = []
    constants: list[float] = []
    for (point, name), found in _measured(suite).items():
        if name != capability:
            continue
        if not math.isnan(found.pass_at_1.mean):
            rows.append({"point": point, **asdict(found.pass_at_1)})
        constants += [] if math.isnan(found.constant) else [found.constant]
    said = "; ".join(f"{r['point']} {percent(r['mean'])}" for r in rows)
    svg = stage_dots(
        rows,
        max(constants) if constants else None,
        top=top,
        label=f"{capability}: pass@1 by stage: {said}",
    )
    return Panel(capability, svg=svg)


def method(run: Run, evaluated: Sequence[Evaluated]) -> list[str]:
    """Describe how the results were measured."""
    if not evaluated:
        return []
    spec: Mapping[str, Any] = run.recipe.get("eval") or {}
    how = ""
    if {"num_generations", "temperature", "max_tokens"} <= set(spec):
        how = (
            f" Each prompt is answered {number(spec['num_generations'])} times at temperature "
            f"{number(spec['temperature'])}, with at most {number(spec['max_tokens'])} tokens and "
            "the same seeds after every stage."
        )
    return [
        "How it was measured. Held-out prompts are set aside before training, and no training row "
        f"asks the same question.{how} A verifier decides each answer. An answer that it cannot "
        "decide counts as missing, not as failed. pass@1 is the mean pass rate over prompts; "
        "pass@k is the unbiased estimate of the probability that at least one of k answers passes. "
        "Intervals are 95 % bootstrap intervals over prompts: they show how results would vary "
        "with other prompts of the same kind, but not with another training seed. If fewer than "
        "five prompts differ from the rest, the interval is widened for one more such prompt.",
        "The best constant answer is the pass rate of always giving the single answer that passes "
        "most often. A policy that does not beat it may have learned nothing but that answer.",
    ]


def _range(interval: Interval) -> str:
    return f"{percent(interval.low)} to {percent(interval.high)}".replace(f"{NBSP}% to", " to")


def sentence(suite: Evaluated, changes: Sequence[Change]) -> str:
    """Return the result in one sentence, with changes within noise marked."""
    first, last = next(iter(suite.results)), list(suite.results)[-1]
    values = {p: suite.results[p].macro.mean for p in (first, last)}
    if first == last:
        return f"Held-out pass@1, macro average, is {percent(values[first])} for {first}."
    text = (
        f"Held-out pass@1, macro average, went from {percent(values[first])} ({first}) to "
        f"{percent(values[last])} ({last})"
    )
    if not changes:
        return text + "."
    whole = changes[-1].macro
    parts = [
        f"{c.after} {points(c.macro.mean)}{_noise(c.macro)}"
        for c in changes
        if (c.before, c.after) != (first, last)
    ]
    change = (
        f": {points(whole.mean)} points [{points(whole.low)}, {points(whole.high)}]{_noise(whole)}"
    )
    return text + change + (f". Stage by stage: {', '.join(parts)}." if len(changes) > 1 else ".")


def _noise(interval: Interval) -> str:
    return "" if interval.excludes_zero else " (within noise)"
