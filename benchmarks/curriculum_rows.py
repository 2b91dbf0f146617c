"""The rows of a curriculum bed: one run of an arm on a pool with a seed, kept in a ledger."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.curriculum import CurriculumSpec
from posttrain.recipe import load_curriculum
from posttrain.recipe.files import shipped_files

TARGETS = (0.5, 0.75, 0.9)
"""Shares of uniform's final gain in held-out pass@1."""
COSTS = ("tokens", "rollouts", "steps", "seconds", "scored_tokens")
SHUFFLED = "adaptive, shuffled tags"
MAX_SPENT = 1.5
"""Multiple of uniform's tokens after which an arm is stopped; what it spent is then a bound."""

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """A finished run."""

    points: list[dict[str, float]]
    """Held-out pass@1 (held_out) and all costs so far, at each evaluation."""
    purposes: dict[str, int]
    """Generated tokens by what they were used for."""
    reliability: list[tuple[float, float, int]]
    metrics: dict[str, float]
    wall_seconds: float


def shipped_curricula() -> dict[str, CurriculumSpec]:
    """Return every shipped curriculum by name, uniform first."""
    shipped = {path.stem: load_curriculum(path) for path in shipped_files("curricula")}
    return {"uniform": shipped["uniform"], **shipped}


def row_of(
    trace: Trace, *, key: str, pool: str, arm: str, seed: int, start: float, uniform_final: float
) -> Row:
    """Return a run as a ledger's row; `start` and `uniform_final` are from uniform's run."""
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
    """Return the costs at which `target` was reached and held for one more evaluation.

    Interpolates linearly. None where it was never reached, or held from the start.
    """
    for before, now, after in zip(points, points[1:], points[2:], strict=False):
        if points[0]["held_out"] < target <= min(now["held_out"], after["held_out"]):
            rise = now["held_out"] - before["held_out"]
            share = min(max((target - before["held_out"]) / rise, 0.0), 1.0) if rise > 0 else 1.0
            return {c: before[c] + share * (now[c] - before[c]) for c in COSTS}
    return None


def code_hash(*places: Path) -> str:
    """Hash every Python file at or under `places`: rows of other code are run again."""
    files = [
        path for place in places for path in (place.rglob("*.py") if place.is_dir() else [place])
    ]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def read_ledger(ledger: Path) -> dict[str, Row]:
    """Return a ledger's rows by key, without a last line that was cut off."""
    if not ledger.exists():
        return {}
    rows: dict[str, Row] = {}
    for line in ledger.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["key"]] = row
    return rows


def append_row(ledger: Path, row: Row) -> None:
    """Append one row as soon as its run ends, so that a stopped suite loses no finished run."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with ledger.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
