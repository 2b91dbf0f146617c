"""Differences between stages on the same prompts, marked where they may be noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from posttrain.metrics import Interval, paired_difference
from posttrain.records import Prompt, RolloutGroup
from posttrain.report.blocks import Cell, Table, TableRow, Tone, points
from posttrain.report.inert import plain
from posttrain.report.read import Evaluated
from posttrain.report.results import MACRO


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Paired difference between two points: macro average, and by capability."""

    before: str
    after: str
    macro: Interval
    capabilities: Mapping[str, Interval]


def measured_changes(suite: Evaluated, prompts: Mapping[str, Prompt]) -> list[Change]:
    """Return paired differences from each point to the next, and from the first to the last."""
    sorted_groups = {
        p: _by_capability(groups, prompts) for p, groups in suite.groups.items() if groups
    }
    there = list(sorted_groups)
    steps = list(pairwise(there))
    if len(there) > 2:
        steps.append((there[0], there[-1]))
    return [
        _change(before, after, sorted_groups[before], sorted_groups[after])
        for before, after in steps
    ]


def _change(
    before: str,
    after: str,
    old: Mapping[str, list[RolloutGroup]],
    new: Mapping[str, list[RolloutGroup]],
) -> Change:
    return Change(
        before=before,
        after=after,
        macro=paired_difference(old, new),
        capabilities={
            c: paired_difference({c: old[c]}, {c: new[c]}) for c in sorted(old) if c in new
        },
    )


def change_table(suite: str, changes: Sequence[Change]) -> Table:
    """Tabulate each stage minus the one before, in percentage points, with paired intervals."""
    named = sorted({name for change in changes for name in change.capabilities})
    rows = [
        TableRow(
            head=f"{c.after} {chr(0x2212)} {c.before}",
            cells=[_change_cell(c.macro), *(_change_cell(c.capabilities[n]) for n in named)],
        )
        for c in changes
    ]
    return Table(
        title=f"Suite {plain(suite)}: differences between stages",
        header=["difference", MACRO, *named],
        rows=rows,
        caption=(
            "Percentage points of pass@1 on the same prompts, with the 95 % interval of a paired "
            "bootstrap over prompts, widened for one more changed prompt if fewer than five "
            "differ from the rest. Coloured if the interval excludes zero, grey if the change is "
            "within noise."
        ),
    )


def _change_cell(interval: Interval) -> Cell:
    if interval.mean != interval.mean:
        return Cell("\u2013")
    return Cell(
        points(interval.mean),
        sub=f"{points(interval.low)} to {points(interval.high)}",
        tone=tone(interval),
    )


def tone(interval: Interval) -> Tone:
    """Return the tone of a difference: better, worse, or within noise."""
    if not interval.excludes_zero:
        return "flat"
    return "up" if interval.mean > 0 else "down"


def _by_capability(
    groups: Sequence[RolloutGroup], prompts: Mapping[str, Prompt]
) -> dict[str, list[RolloutGroup]]:
    sorted_groups: dict[str, list[RolloutGroup]] = {}
    for group in groups:
        name = prompts[group.prompt_id].capability if group.prompt_id in prompts else "unknown"
        sorted_groups.setdefault(name, []).append(group)
    return sorted_groups
