"""The simulated bed's tables and plots: paired ratios with intervals, bounds, ceilings."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.bench.record import Result
from posttrain.bench.sim_pools import POOLS, draw_pool
from posttrain.bench.sim_run import BATCH, GROUP_SIZE
from posttrain.bench.sim_suite import ORACLE, SHUFFLED, TARGETS, Row

OURS = "adaptive"
_NUM_RESAMPLES = 10_000
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
    "adaptive / it",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """How many times cheaper, over paired seeds: geometric mean and bootstrap 95 % interval."""

    mean: float
    low: float
    high: float
    num_bounds: int
    """Seeds in which the arm never got there: its ratio is at most what it was counted with."""
    num_seeds: int

    def text(self) -> str:
        """As people read it."""
        return f"{'<= ' if self.num_bounds else ''}{self.mean:.2f}"

    def interval(self) -> str:
        """As people read it."""
        return f"{self.low:.2f} to {self.high:.2f}"


def paired_ratio(theirs: Sequence[float], ours: Sequence[float], bounds: int = 0) -> Ratio:
    """Of costs with equal seeds, theirs over ours."""
    logs = np.log(np.array(theirs) / np.array(ours))
    rng = np.random.default_rng(0)
    means = logs[rng.integers(len(logs), size=(_NUM_RESAMPLES, len(logs)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Ratio(
        mean=math.exp(logs.mean()),
        low=math.exp(low),
        high=math.exp(high),
        num_bounds=bounds,
        num_seeds=len(logs),
    )


def costs(rows: Sequence[Row], share: float, cost: str) -> tuple[list[float], int]:
    """Each seed's cost to a target, and how many are what was spent in vain."""
    found: list[float] = []
    bounds = 0
    for row in sorted(rows, key=lambda row: row["seed"]):
        reached = row["reached"][str(share)] or row["spent"]
        bounds += row["reached"][str(share)] is None
        extra = reached["scored_tokens"] if cost == "all_tokens" else 0.0
        found.append(reached["tokens" if cost == "all_tokens" else cost] + extra)
    return found, bounds


def simulated_result(rows: Sequence[Row]) -> Result:
    """Table and figures of all rows."""
    of: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        of[row["pool"]][row["arm"]].append(row)
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
        ceiling = _ratio(by_arm["uniform"], by_arm[ORACLE], 0.9, "tokens")
        label = f"{pool} (1/alive {about['one_over_alive']:.1f}, oracle {ceiling.text()})"
        for arm, arm_rows in by_arm.items():
            if arm == "uniform":
                continue
            ratios = {
                f"{cost} {share:g}": _ratio(by_arm["uniform"], arm_rows, share, cost)
                for share in TARGETS
                for cost in ("tokens", "rollouts", "steps", "seconds", "all_tokens")
            }
            against = _ratio(arm_rows, by_arm[OURS], 0.9, "tokens")
            if arm not in (OURS, ORACLE, SHUFFLED, "adaptive_no_tags", "adaptive_no_probe"):
                compared += 1
                better += against.low > 1.0
            if arm not in (OURS, ORACLE) and against.high < 1.0:
                worse.append(f"{arm} on {pool} ({against.text()}, {against.interval()})")
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
                    "" if arm == OURS else f"{against.mean:.2f} ({against.interval()})",
                ]
            )
            figures[pool]["arms"][arm] = {
                **{name: _values(ratio) for name, ratio in ratios.items()},
                "adaptive over it": _values(against),
                "tokens by use": _shares(arm_rows),
            }
        shuffled = _ratio(by_arm["adaptive_no_tags"], by_arm[SHUFFLED], 0.9, "tokens")
        figures[pool]["shuffled over no tags"] = _values(shuffled)
    seeds = sorted({row["seed"] for row in rows})
    return Result(
        name="curriculum-simulated",
        title="Curricula on simulated learners",
        columns=_COLUMNS,
        rows=table,
        figures={"seeds": seeds, "pools": figures},
        notes=[
            f"Cost of uniform over the arm's to reach 90 % (75, 50) of uniform's final gain in "
            f"held-out pass@1: above 1 the arm is cheaper. {len(seeds)} paired seeds "
            f"({seeds[0]} to {seeds[-1]}), geometric means, bootstrap intervals; batches of "
            f"{BATCH} groups of {GROUP_SIZE}. '<=': in some seeds the arm never got there within "
            "one and a half times uniform's tokens or three times its steps. Every pilot, "
            "discarded group and review is paid for. Seconds are the model's in "
            "posttrain/bench/sim_run.py, no clock's. 1/alive: prompts per prompt whose group "
            "would have signal at the start.",
            f"Adaptive is significantly cheaper than {better} of {compared} other arms over all "
            f"pools. Significantly dearer than: {'; '.join(worse) or 'none'}.",
            *notes,
            "What is simulated, and why real ratios are lower: posttrain/bench/learner.py, "
            "docs/curriculum.md.",
        ],
    )


def describe_pool(pool: str) -> dict[str, float]:
    """Share of alive prompts at the start, and the ceilings that follow."""
    p = 1.0 / (1.0 + np.exp(draw_pool(POOLS[pool], 0).difficulty_P))
    alive = float((1 - p**GROUP_SIZE - (1 - p) ** GROUP_SIZE).mean())
    return {
        "alive": alive,
        "one_over_alive": 1.0 / alive,
        "quarter_over_variance": float(0.25 / (p * (1 - p)).mean()),
    }


def write_plots(
    rows: Sequence[Row], folder: Path, stem: str = "curriculum-simulated"
) -> list[Path]:
    """One SVG per pool: held-out pass@1 over generated tokens, means over seeds."""
    import altair as alt

    written: list[Path] = []
    for pool in dict.fromkeys(row["pool"] for row in rows):
        mine = [row for row in rows if row["pool"] == pool]
        most = float(np.mean([r["spent"]["tokens"] for r in mine if r["arm"] == "uniform"]))
        values: list[dict[str, Any]] = []
        for arm in dict.fromkeys(row["arm"] for row in mine):
            curves = [np.array(row["curve"]) for row in mine if row["arm"] == arm]
            end = min(float(curve[-1, 0]) for curve in curves)
            for at in np.linspace(0.0, min(end, most), 40):
                mean = np.mean([np.interp(at, curve[:, 0], curve[:, 1]) for curve in curves])
                values.append({"tokens": at / 1e6, "pass@1": round(float(mean), 4), "arm": arm})
        chart = (
            alt.Chart(alt.InlineData(values=values), title=pool, width=520, height=300)
            .mark_line(strokeWidth=1.6)
            .encode(
                x=alt.X("tokens:Q", title="generated tokens, millions"),
                y=alt.Y("pass@1:Q", title="held-out pass@1", scale=alt.Scale(zero=False)),
                color=alt.Color("arm:N", sort=None, scale=alt.Scale(scheme="tableau20")),
            )
        )
        name = "".join(c if c.isalnum() else "-" for c in pool)
        while "--" in name:
            name = name.replace("--", "-")
        path = folder / f"{stem}-{name.strip('-')}.svg"
        chart.save(str(path))
        written.append(path)
    return written


def _ratio(base: Sequence[Row], arm: Sequence[Row], share: float, cost: str) -> Ratio:
    theirs, _ = costs(base, share, cost)
    ours, bounds = costs(arm, share, cost)
    return paired_ratio(theirs, ours, bounds)


def _values(ratio: Ratio) -> dict[str, float]:
    return {
        "ratio": ratio.mean,
        "low": ratio.low,
        "high": ratio.high,
        "bounds": ratio.num_bounds,
        "seeds": ratio.num_seeds,
    }


def _shares(rows: Sequence[Row]) -> dict[str, float]:
    total: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        for use, tokens in row["purposes"].items():
            total[use] += tokens
    return {use: tokens / sum(total.values()) for use, tokens in sorted(total.items())}


def _random_reward(pool: str, by_arm: Mapping[str, Sequence[Row]], figures: dict[str, Any]) -> str:
    """With rewards that mean nothing no arm may gain."""
    told: list[str] = []
    for arm, rows in by_arm.items():
        change = float(np.mean([row["final"] - row["start"] for row in rows]))
        figures[pool]["arms"][arm] = {"change of pass@1": change}
        told.append(f"{arm} {change:+.3f}")
    return f"{pool}: change of held-out pass@1 at uniform's tokens: {', '.join(told)}."
