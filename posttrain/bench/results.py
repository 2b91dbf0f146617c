"""What each stage of a finished run did to held-out pass rates, read from its evaluations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from posttrain.bench.measure import Result
from posttrain.errors import RecipeError
from posttrain.metrics import Interval
from posttrain.report.changes import Change, measured_changes
from posttrain.report.read import MACRO, read_evaluated, read_evaluations, read_prompts, read_run
from posttrain.report.results import ResultRow, result_rows


def bench_results(run_dir: Path) -> Result:
    """Pass rates per stage and capability, and the paired differences between stages.

    Of the first suite; raises RecipeError where nothing was evaluated.
    """
    run = read_run(run_dir) if (run_dir / "stages").is_dir() else None
    evaluated = read_evaluated(run) if run is not None else []
    if run is None or not evaluated:
        raise RecipeError(
            f"{run_dir} holds no finished evaluation",
            hint=f"posttrain run RECIPE --run-dir {run_dir}",
        )
    suite = evaluated[0]
    changes = measured_changes(suite, read_prompts(run))
    name = f"{run.name}-seed-{run.recipe.get('seed')}"
    return Result(
        name=f"results-{name}",
        title=f"What each stage did: {name}",
        columns=["stage", "capability", "pass@1 [95 %]", "pass@k", "best constant", "seconds"],
        rows=[_row(row) for row in result_rows(suite.suite, read_evaluations(run), run.stages)],
        figures={
            "suite": suite.suite,
            "stages": {point: result.as_json() for point, result in suite.results.items()},
            "changes": [_figures(change) for change in changes],
            "seed": run.recipe.get("seed"),
            "commit_of_run": run.environment.get("commit"),
        },
        notes=[
            f"The run is of commit {run.environment.get('commit')}, seed {run.recipe.get('seed')}, "
            f"{suite.suite} suite. Seconds are the training stage's, for base the evaluation's.",
            "Differences of the macro average, paired over the prompts, with 95 % intervals: "
            + "; ".join(_words(change) for change in changes)
            + ".",
        ],
    )


def _row(row: ResultRow) -> list[str]:
    found = row.pass_at_1
    largest = max(row.pass_at_k, default=0)
    at_k = row.pass_at_k.get(largest, math.nan)
    seconds = "-" if row.seconds is None else f"{row.seconds:.1f}"
    return [
        row.point,
        row.capability,
        f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]",
        "-" if math.isnan(at_k) else f"{at_k:.3f} (k = {largest})",
        "-" if math.isnan(row.constant) else f"{row.constant:.3f}",
        seconds if row.capability == MACRO else "",
    ]


def _figures(change: Change) -> dict[str, Any]:
    return {
        "before": change.before,
        "after": change.after,
        "macro": _values(change.macro),
        "capabilities": {name: _values(found) for name, found in change.capabilities.items()},
    }


def _values(found: Interval) -> dict[str, float]:
    return {"mean": found.mean, "low": found.low, "high": found.high}


def _words(change: Change) -> str:
    found = change.macro
    return (
        f"{change.after} - {change.before} {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    )
