"""A curriculum benchmark's rows: one run of an arm on a pool with a seed, kept in a ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGETS = (0.5, 0.75, 0.9)
"""Shares of uniform's final gain."""
COSTS = ("tokens", "rollouts", "steps", "seconds", "scored_tokens")
SHUFFLED = "adaptive, shuffled tags"
# An arm may spend so much of uniform's tokens before it is given up as a bound.
MAX_SPENT = 1.5

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """A finished run."""

    points: list[dict[str, float]]
    """Held-out pass@1 (held_out) and every cost so far, per evaluation."""
    purposes: dict[str, int]
    """Generated tokens by what became of them."""
    reliability: list[tuple[float, float, int]]
    metrics: dict[str, float]
    wall_seconds: float


def row_of(
    trace: Trace, *, key: str, pool: str, arm: str, seed: int, start: float, uniform_final: float
) -> Row:
    """One run as a ledger's row; `start` and `uniform_final` are the same seed's uniform's."""
    gain = uniform_final - start
    return {
        "key": key,
        "pool": pool,
        "arm": arm,
        "seed": seed,
        "start": start,
        "uniform_final": uniform_final,
        "final": trace.points[-1]["held_out"],
        "reached": {str(share): crossing(trace.points, start + share * gain) for share in TARGETS},
        "spent": {c: trace.points[-1][c] for c in COSTS},
        "purposes": trace.purposes,
        "metrics": trace.metrics,
        "reliability": trace.reliability,
        "curve": [[p["tokens"], round(p["held_out"], 5)] for p in trace.points],
        "wall_seconds": trace.wall_seconds,
    }


def crossing(points: Sequence[Mapping[str, float]], target: float) -> dict[str, float] | None:
    """What was spent when `target` was reached for two evaluations in a row; None where never.

    Linear in between. Never, too, where `target` is what training began with.
    """
    for before, now, after in zip(points, points[1:], points[2:], strict=False):
        if points[0]["held_out"] < target <= min(now["held_out"], after["held_out"]):
            rise = now["held_out"] - before["held_out"]
            share = min(max((target - before["held_out"]) / rise, 0.0), 1.0) if rise > 0 else 1.0
            return {c: before[c] + share * (now[c] - before[c]) for c in COSTS}
    return None


def read_ledger(ledger: Path) -> list[Row]:
    """Rows of a ledger; a last line that was cut off is not counted."""
    if not ledger.exists():
        return []
    rows: list[Row] = []
    for line in ledger.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def append_row(ledger: Path, row: Row) -> None:
    """At once, so that a run that is stopped loses none."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with ledger.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
