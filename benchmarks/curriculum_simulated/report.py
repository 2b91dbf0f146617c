"""The simulated bed's table: ratios of costs, paired over seeds, with bounds and ceilings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.curriculum_rows import SHUFFLED, Row
from benchmarks.curriculum_simulated.pools import POOLS, draw_pool
from benchmarks.curriculum_simulated.simulation import BATCH, GROUP_SIZE
from benchmarks.curriculum_simulated.suite import ORACLE
from benchmarks.curriculum_tables import (
    OURS,
    RATIO_COLUMNS,
    all_ratios,
    by_pool_and_arm,
    cost_ratio,
    ratio_cells,
    told_how,
)
from posttrain.bench.measure import Result

NAME = "curriculum-simulated"
_COLUMNS = [
    "pool",
    "arm",
    *RATIO_COLUMNS,
    "adaptive / it",
]


def simulated_result(rows: Sequence[Row]) -> Result:
    """Return table and figures of all rows."""
    of = by_pool_and_arm(rows)
    table: list[list[str]] = []
    figures: dict[str, Any] = {}
    notes: list[str] = []
    worse: list[str] = []
    better = compared = 0
    for pool, by_arm in of.items():
        about = describe_pool(pool)
        figures[pool] = {"about": about, "arms": {}}
        if POOLS[pool].random_reward:
            notes.append(_random_reward(pool, by_arm, figures))
            continue
        ceiling = cost_ratio(by_arm["uniform"], by_arm[ORACLE], 0.9, "tokens")
        label = f"{pool} (1/alive {about['one_over_alive']:.1f}, oracle {ceiling.text()})"
        for arm, arm_rows in by_arm.items():
            if arm == "uniform":
                continue
            ratios = all_ratios(by_arm["uniform"], arm_rows)
            against = cost_ratio(arm_rows, by_arm[OURS], 0.9, "tokens")
            if arm not in (OURS, ORACLE, SHUFFLED, "adaptive_no_tags", "adaptive_no_probe"):
                compared += 1
                better += against.low > 1.0
            if arm not in (OURS, ORACLE) and against.high < 1.0:
                worse.append(f"{arm} on {pool} ({against.text()}, {against.interval()})")
            table.append(
                [
                    label,
                    arm,
                    *ratio_cells(ratios),
                    "" if arm == OURS else f"{against.text()} ({against.interval()})",
                ]
            )
            figures[pool]["arms"][arm] = {
                **{name: ratio.values() for name, ratio in ratios.items()},
                "adaptive over it": against.values(),
                "tokens by use": _shares(arm_rows),
            }
        shuffled = cost_ratio(by_arm["adaptive_no_tags"], by_arm[SHUFFLED], 0.9, "tokens")
        figures[pool]["shuffled over no tags"] = shuffled.values()
    seeds = sorted({row["seed"] for row in rows})
    return Result(
        name=NAME,
        title="Curricula on simulated learners",
        columns=_COLUMNS,
        rows=table,
        figures={"seeds": seeds, "pools": figures},
        notes=[
            f"{told_how(seeds, BATCH, GROUP_SIZE)} Seconds are computed in "
            "benchmarks/curriculum_simulated/simulation.py, not measured. 1/alive: prompts per "
            "prompt whose group would have signal at the start.",
            f"Adaptive is significantly cheaper than {better} of {compared} other arms over all "
            f"pools. Significantly dearer than: {'; '.join(worse) or 'none'}.",
            *notes,
            "What is simulated, and why real ratios are lower: docs/curriculum.md and "
            "benchmarks/curriculum_simulated/learner.py.",
        ],
    )


def describe_pool(pool: str) -> dict[str, float]:
    """Return the share of alive prompts at the start, and the ceilings that follow from it."""
    p = 1.0 / (1.0 + np.exp(draw_pool(POOLS[pool], 0).difficulty_P))
    alive = float((1 - p**GROUP_SIZE - (1 - p) ** GROUP_SIZE).mean())
    return {
        "alive": alive,
        "one_over_alive": 1.0 / alive,
        "quarter_over_variance": float(0.25 / (p * (1 - p)).mean()),
    }


def _shares(rows: Sequence[Row]) -> dict[str, float]:
    total: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        for use, tokens in row["purposes"].items():
            total[use] += tokens
    return {use: tokens / sum(total.values()) for use, tokens in sorted(total.items())}


def _random_reward(pool: str, by_arm: Mapping[str, Sequence[Row]], figures: dict[str, Any]) -> str:
    """Report each arm's change under random rewards, where none may gain."""
    told: list[str] = []
    for arm, rows in by_arm.items():
        change = float(np.mean([row["final"] - row["start"] for row in rows]))
        figures[pool]["arms"][arm] = {"change of pass@1": change}
        told.append(f"{arm} {change:+.3f}")
    return f"{pool}: change of held-out pass@1 at uniform's tokens: {', '.join(told)}."
