"""The real bed's table: paired ratios by the simulated bed's statistics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from posttrain.bench.real_pools import GROUP_SIZE
from posttrain.bench.real_run import BATCH
from posttrain.bench.real_specs import REAL_POOLS
from posttrain.bench.record import Result
from posttrain.bench.sim_report import OURS, Ratio, costs, paired_ratio
from posttrain.bench.sim_suite import TARGETS, Row

NAME = "curriculum-real"
_COSTS = ("tokens", "rollouts", "steps", "seconds", "all_tokens")
_COLUMNS = [
    "pool",
    "arm",
    "tokens, 90 %",
    "95 % interval",
    "75 %",
    "50 %",
    "rollouts",
    "steps",
    "seconds",
    "with scored tokens",
    "discarded",
    "pass@1",
    "adaptive / it",
]


def real_result(rows: Sequence[Row]) -> Result:
    """Table and figures of all rows; every pool and seed has its uniform row."""
    of: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        of[row["pool"]][row["arm"]].append(row)
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
                table.append([label, arm, "1", "", *ones, f"{discarded:.2f}", told, ""])
                continue
            ratios = {
                f"{cost} {share:g}": cost_ratio(uniform, arm_rows, share, cost)
                for share in TARGETS
                for cost in _COSTS
            }
            against = (
                cost_ratio(arm_rows, by_arm[OURS], TARGETS[-1], "tokens")
                if OURS in by_arm and arm != OURS
                else None
            )
            main = ratios["tokens 0.9"]
            table.append(
                [
                    label,
                    arm,
                    main.text(),
                    main.interval(),
                    ratios["tokens 0.75"].text(),
                    ratios["tokens 0.5"].text(),
                    *(ratios[f"{c} 0.9"].text() for c in ("rollouts", "steps", "seconds")),
                    ratios["all_tokens 0.9"].text(),
                    f"{discarded:.2f}",
                    told,
                    f"{against.mean:.2f} ({against.interval()})" if against else "",
                ]
            )
            figures[pool]["arms"][arm] = {
                **{name: _values(ratio) for name, ratio in ratios.items()},
                "share of tokens discarded": discarded,
                "adaptive over it": _values(against) if against else None,
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


def cost_ratio(base: Sequence[Row], arm: Sequence[Row], share: float, cost: str) -> Ratio:
    """Of the cost to a target over the seeds that both have."""
    both = {row["seed"] for row in base} & {row["seed"] for row in arm}
    theirs, _ = costs([row for row in base if row["seed"] in both], share, cost)
    ours, bounds = costs([row for row in arm if row["seed"] in both], share, cost)
    return paired_ratio(theirs, ours, bounds)


def _notes(of: dict[str, dict[str, list[Row]]], seeds: Sequence[int]) -> list[str]:
    spec = next(iter(REAL_POOLS.values()))
    uniform = {pool: by_arm["uniform"] for pool, by_arm in of.items()}
    gains = ", ".join(
        f"{pool}: {_mean(mine, 'start'):.3f} to {_mean(mine, 'final'):.3f}"
        for pool, mine in uniform.items()
    )
    return [
        f"Cost of uniform over the arm's to reach 90 % (75, 50) of uniform's final gain in "
        f"held-out pass@1: above 1 the arm is cheaper. {len(seeds)} paired seeds ({seeds[0]} to "
        f"{seeds[-1]}), geometric means, bootstrap intervals; batches of {BATCH} groups of "
        f"{GROUP_SIZE}. '<=': in some seeds the arm never got there within one and a half times "
        "uniform's tokens or three times its steps. Every pilot, discarded group and review is "
        "paid for. Seconds are the process's processor time on one thread, rollouts, scoring and "
        "training together, held-out measurements left out.",
        "A nano Llama 4 mixture of experts (0.9M parameters) that posttrain's SFT taught a part of "
        "three tasks on strings of 2 to 12 letters; all its weights are trained, rollouts by the "
        "transformers engine, verifier exact, TRL's GRPO loss. Held-out pass@1 is macro over the "
        "tasks, of prompts that nobody chooses from, exactly: the probability of the answer and "
        f"its end at temperature 1. Uniform's gain: {gains}.",
        "1/alive: prompts per prompt whose group would have signal at the start, by the starting "
        "policy's pass rates. Curricula are told no levels. Tags are those pass rates' logits with "
        f"noise: correlation {spec.tag_correlation:g}.",
    ]


def _mean(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def _share_discarded(rows: Sequence[Row]) -> float:
    return float(
        np.mean([row["purposes"].get("discarded", 0) / row["spent"]["tokens"] for row in rows])
    )


def _values(ratio: Ratio) -> dict[str, float]:
    return {
        "ratio": ratio.mean,
        "low": ratio.low,
        "high": ratio.high,
        "bounds": ratio.num_bounds,
        "seeds": ratio.num_seeds,
    }
