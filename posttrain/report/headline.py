"""The first thing on the page: what each stage did to held-out answers, beyond chance or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.metrics import Interval
from posttrain.records import Prompt
from posttrain.report.blocks import (
    NBSP,
    Block,
    Cell,
    Figure,
    Note,
    Panel,
    Prose,
    Row,
    Section,
    Table,
    duration,
    number,
    percent,
    plural,
    points,
)
from posttrain.report.changes import Change, change_table, measured_changes
from posttrain.report.charts import stage_dots
from posttrain.report.inert import plain
from posttrain.report.read import EVAL_POINTS, MACRO, Evaluated, Run

MAX_PANELS = 12


def section(run: Run, evaluated: Sequence[Evaluated], prompts: Mapping[str, Prompt]) -> Section:
    """The headline section: a table, a figure and the differences for every suite."""
    blocks: list[Block] = []
    if not evaluated:
        blocks.append(
            Note(
                text="Nothing was measured: the run has no finished eval stage, so there is no "
                "table."
            )
        )
    for suite in evaluated:
        changes = measured_changes(suite, prompts)
        blocks.append(stage_table(suite))
        if missing := [p for p in expected_points(run) if p not in suite.summaries]:
            blocks.append(Note(text=f"Not measured on {suite.suite}: {', '.join(missing)}."))
        blocks.append(figure(suite))
        if changes:
            blocks.append(change_table(suite.suite, changes))
        elif len(suite.summaries) > 1:
            blocks.append(
                Note(
                    text=f"No paired differences on {suite.suite}: "
                    f"outcomes-{suite.suite}.parquet is missing."
                )
            )
    blocks.extend(Prose(text=text) for text in method(run, evaluated))
    return Section(slug="result", title="What each stage did", blocks=blocks)


def expected_points(run: Run) -> list[str]:
    """The points that the recipe asks to be measured and that it has a stage for."""
    asked = (run.recipe.get("eval") or {}).get("after")
    if asked is None:
        return []
    return [p for p in EVAL_POINTS if p in asked and (p == "base" or run.recipe.get(p) is not None)]


def capability_names(suite: Evaluated) -> list[str]:
    """Every capability of a suite, sorted."""
    return sorted({name for s in suite.summaries.values() for name in s.get("capabilities", {})})


def stage_table(suite: Evaluated) -> Table:
    """Capability x stage: pass@1 with its interval, pass@k, and the best constant answer."""
    named = capability_names(suite)
    rows = [_table_row(suite, None)] + [_table_row(suite, name) for name in named]
    ends = [("tokens sampled", "tokens", number), ("seconds", "seconds", duration)]
    foot = [
        Row(
            head=head,
            cells=[
                *(
                    Cell(text=show(suite.summaries[p].get(key, suite.totals[p].get(key))))
                    for p in suite.totals
                ),
                Cell(text=""),
            ],
        )
        for head, key, show in ends
    ]
    return Table(
        title=f"Suite {plain(suite.suite)}: pass@1 after each stage",
        header=["capability", *suite.summaries, "best constant answer"],
        rows=rows,
        foot=foot,
        caption="Large: pass@1. Under it: its 95 % interval, then pass@k.",
    )


def _table_row(suite: Evaluated, capability: str | None) -> Row:
    cells: list[Cell] = []
    constants: list[float] = []
    num_prompts = 0
    for summary in suite.summaries.values():
        entry = _entry(summary, capability)
        if entry is None:
            cells.append(Cell(text="\u2013"))
            continue
        interval, at_k = _interval(entry), _at_k(entry)
        if capability is None:
            at_k = _macro_at_k(summary)
        sub = f"{_range(interval)}"
        for k, value in sorted(at_k.items(), key=lambda item: int(item[0])):
            sub += f"\npass@{k}{NBSP}{percent(value)}"
        cells.append(Cell(text=percent(interval.mean), sub=sub))
        constant = _macro_constant(summary) if capability is None else entry.get("constant")
        constants += [] if constant is None else [constant]
        num_prompts = max(num_prompts, int(entry.get("num_prompts") or 0))
    cells.append(Cell(text=percent(max(constants)) if constants else "\u2013"))
    head = MACRO if capability is None else f"{capability}\n{plural(num_prompts, 'prompt')}"
    return Row(head=head, cells=cells, strong=capability is None)


def figure(suite: Evaluated) -> Figure:
    """One panel per capability, the macro average first."""
    names: list[str | None] = [None, *capability_names(suite)]
    highs = [
        _interval(entry).high
        for summary in suite.summaries.values()
        for name in names
        if (entry := _entry(summary, name)) is not None
    ]
    top = min(1.0, max([h for h in highs if h == h], default=1.0) * 1.08 + 0.02)
    panels = [_panel(suite, name, top) for name in names]
    return Figure(
        title="The same, drawn",
        panels=panels[:MAX_PANELS],
        more=panels[MAX_PANELS:],
        caption="Dot: pass@1. Band: 95 % interval. Dashed: the best constant answer. All panels "
        "share one scale.",
    )


def _panel(suite: Evaluated, capability: str | None, top: float) -> Panel:
    rows: list[dict[str, Any]] = []
    constants: list[float] = []
    for point, summary in suite.summaries.items():
        entry = _entry(summary, capability)
        if entry is None:
            continue
        interval = _interval(entry)
        if interval.mean == interval.mean:
            rows.append(
                {"point": point, "mean": interval.mean, "low": interval.low, "high": interval.high}
            )
        constant = _macro_constant(summary) if capability is None else entry.get("constant")
        constants += [] if constant is None else [float(constant)]
    name = capability or MACRO
    said = "; ".join(f"{r['point']} {percent(r['mean'])}" for r in rows)
    svg = stage_dots(
        rows,
        max(constants) if constants else None,
        top=top,
        label=f"{name}: pass@1 by stage: {said}",
    )
    return Panel(title=name, svg=svg)


def method(run: Run, evaluated: Sequence[Evaluated]) -> list[str]:
    """How it was measured, in words."""
    if not evaluated:
        return []
    spec: Mapping[str, Any] = run.recipe.get("eval") or {}
    how = ""
    if {"num_generations", "temperature", "max_tokens"} <= set(spec):
        how = (
            f" Each prompt is answered {number(spec['num_generations'])} times at temperature "
            f"{number(spec['temperature'])}, at most {number(spec['max_tokens'])} tokens each, "
            "with the same seeds "
            "after every stage."
        )
    return [
        "How it was measured. Held-out prompts are set aside before anything is trained, and no "
        "training row asks "
        f"the same question.{how} A verifier decides each answer; one it could not decide counts "
        "as missing, not as "
        "failed. pass@1 is the mean pass rate over prompts; pass@k is the unbiased chance that "
        "at least one of k "
        "answers passes. Intervals are 95 % bootstrap intervals over prompts, so they say how "
        "the numbers would move "
        "with other prompts of the same kind, not with another training seed. Where fewer than "
        "five prompts differ from the rest they are wide enough for one prompt more at the worst.",
        "The best constant answer is the score of always giving the one answer that passes most "
        "often. A policy that "
        "does not beat it has learned the commonest answer and nothing else.",
    ]


def _entry(summary: Mapping[str, Any], capability: str | None) -> Mapping[str, Any] | None:
    if capability is None:
        return {"pass@1": summary.get("macro") or {}}
    return summary.get("capabilities", {}).get(capability)


def _interval(entry: Mapping[str, Any]) -> Interval:
    found: Mapping[str, Any] = entry.get("pass@1", entry)
    values = {
        k: float("nan") if found.get(k) is None else float(found[k])
        for k in ("mean", "low", "high")
    }
    return Interval(**values)


def _range(interval: Interval) -> str:
    return f"{percent(interval.low)} to {percent(interval.high)}".replace(f"{NBSP}% to", " to")


def _at_k(entry: Mapping[str, Any]) -> dict[str, float | None]:
    return dict(entry.get("pass@k") or {})


def _macro_at_k(summary: Mapping[str, Any]) -> dict[str, float]:
    """Mean over capabilities, for the k that every capability has."""
    entries = [_at_k(entry) for entry in summary.get("capabilities", {}).values()]
    shared = set.intersection(*(set(e) for e in entries)) if entries else set[str]()
    values = {k: [e[k] for e in entries] for k in shared}
    return {
        k: sum(v for v in vs if v is not None) / len(vs)
        for k, vs in values.items()
        if None not in vs
    }


def _macro_constant(summary: Mapping[str, Any]) -> float | None:
    values = [entry.get("constant") for entry in summary.get("capabilities", {}).values()]
    return None if not values or None in values else sum(values) / len(values)


def sentence(suite: Evaluated, changes: Sequence[Change]) -> str:
    """The result in one sentence, noise called noise."""
    first, last = next(iter(suite.summaries)), list(suite.summaries)[-1]
    values = {p: _interval(suite.summaries[p].get("macro") or {}).mean for p in (first, last)}
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
