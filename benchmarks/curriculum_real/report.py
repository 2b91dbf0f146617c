"""The real bed's table: ratios of costs, paired over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.curriculum_real.pools import GROUP_SIZE, REAL_POOLS
from benchmarks.curriculum_real.run import BATCH
from benchmarks.curriculum_real.suite import HIGHER_RATE
from benchmarks.curriculum_rows import TARGETS, Row
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

NAME = "curriculum-real"
_COLUMNS = [
    "pool",
    "arm",
    "seeds",
    *RATIO_COLUMNS,
    "discarded",
    "pass@1",
    "adaptive / it",
]


def real_result(rows: Sequence[Row]) -> Result:
    """Return table and figures of all rows; every pool and seed needs its uniform row."""
    of = by_pool_and_arm(rows)
    table: list[list[str]] = []
    figures: dict[str, Any] = {}
    for pool, by_arm in of.items():
        uniform = by_arm["uniform"]
        alive = float(np.mean([row["alive"] for row in uniform]))
        figures[pool] = {
            "alive": alive,
            "one_over_alive": 1.0 / alive,
            "start": float(np.mean([row["start"] for row in uniform])),
            "uniform's final": float(np.mean([row["final"] for row in uniform])),
            "uniform's tokens": float(np.mean([row["spent"]["tokens"] for row in uniform])),
            "uniform's seconds": float(np.mean([row["spent"]["seconds"] for row in uniform])),
            "arms": {},
        }
        label = f"{pool} (1/alive {1.0 / alive:.1f})"
        for arm, arm_rows in by_arm.items():
            told = f"{_mean(arm_rows, 'start'):.3f} to {_mean(arm_rows, 'final'):.3f}"
            discarded = _share_discarded(arm_rows)
            if arm == "uniform":
                ones = ["1"] * 6
                num = str(len(arm_rows))
                table.append([label, arm, num, "1", "", *ones, f"{discarded:.2f}", told, ""])
                continue
            ratios = all_ratios(uniform, arm_rows)
            ours = OURS + HIGHER_RATE if arm.endswith(HIGHER_RATE) else OURS
            against = (
                cost_ratio(arm_rows, by_arm[ours], TARGETS[-1], "tokens")
                if ours in by_arm and arm != ours
                else None
            )
            table.append(
                [
                    label,
                    arm,
                    str(len(arm_rows)),
                    *ratio_cells(ratios),
                    f"{discarded:.2f}",
                    told,
                    f"{against.text()} ({against.interval()})" if against else "",
                ]
            )
            figures[pool]["arms"][arm] = {
                **{name: ratio.values() for name, ratio in ratios.items()},
                "share of tokens discarded": discarded,
                "adaptive over it": against.values() if against else None,
            }
    seeds = sorted({row["seed"] for row in rows})
    return Result(
        name=NAME,
        title="Curricula on real learners",
        columns=_COLUMNS,
        rows=table,
        figures={"seeds": seeds, "pools": figures},
        notes=_notes(of, seeds),
    )


def _notes(of: dict[str, dict[str, list[Row]]], seeds: Sequence[int]) -> list[str]:
    spec = next(iter(REAL_POOLS.values()))
    uniform = {pool: by_arm["uniform"] for pool, by_arm in of.items()}
    gains = ", ".join(
        f"{pool}: {_mean(mine, 'start'):.3f} to {_mean(mine, 'final'):.3f}"
        for pool, mine in uniform.items()
    )
    rates = "; ".join(
        f"{pool} {REAL_POOLS[pool].learning_rate:g}, {REAL_POOLS[pool].higher_rate:g}"
        for pool in of
    )
    return [
        f"{told_how(seeds, BATCH, GROUP_SIZE)} Seconds are the process's processor time on one "
        "thread, rollouts, scoring and training together, held-out measurements left out.",
        "A nano Llama 4 mixture of experts (0.9M parameters) that posttrain's SFT taught a part of "
        "three tasks on strings of 2 to 12 letters; all its weights are trained, rollouts by the "
        "transformers engine, verifier exact, TRL's GRPO loss. Held-out pass@1 is macro over the "
        "tasks, of prompts that nobody chooses from, exactly: the probability of the answer and "
        f"its end at temperature 1. Uniform's gain: {gains}.",
        "1/alive: prompts per prompt whose group would have signal at the start, by the starting "
        "policy's pass rates. Curricula are told no levels. Tags are those pass rates' logits with "
        f"noise: correlation {spec.tag_correlation:g}.",
        f"Learning rates, the usual and the higher one: {rates}. The target is always that of "
        "uniform at the usual rate; adaptive / it compares at equal rates.",
    ]


def _mean(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def _share_discarded(rows: Sequence[Row]) -> float:
    return float(
        np.mean([row["purposes"].get("discarded", 0) / row["spent"]["tokens"] for row in rows])
    )
