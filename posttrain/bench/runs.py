"""Results of a finished run: what each stage took, and what it did to held-out pass rates."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrain.bench.measure import Result
from posttrain.errors import RecipeError
from posttrain.report.changes import Change, measured_changes
from posttrain.report.read import read_evaluated, read_prompts, read_run
from posttrain.report.results import result_rows, result_table, stage_table
from posttrain.run_directory import RunDirectory


def bench_stages(run_dir: Path) -> Result:
    """Return seconds, peak memory and counts of every finished stage of a run directory."""
    stages = RunDirectory(path=run_dir).finished_stages()
    if not stages:
        raise RecipeError(
            f"{run_dir} holds no finished stage", hint=f"posttrain run RECIPE --run-dir {run_dir}"
        )
    manifests = [stage.manifest for stage in stages.values()]
    columns, rows = stage_table(stages)
    return Result(
        name=f"stages-{run_dir.resolve().name}",
        title=f"Stage by stage: {run_dir.resolve().name}",
        columns=columns,
        rows=rows,
        figures={
            "stages": [
                {
                    "stage": manifest.stage,
                    "seconds": manifest.seconds,
                    "peak_rss_bytes": manifest.peak_rss_bytes,
                    "counts": manifest.counts,
                }
                for manifest in manifests
            ],
            "seconds": sum(manifest.seconds for manifest in manifests),
            "peak_rss_bytes": max(
                (m.peak_rss_bytes for m in manifests if m.peak_rss_bytes), default=None
            ),
        },
    )


def bench_results(run_dir: Path) -> Result:
    """Return the first suite's pass rates by stage and capability, with paired differences.

    Raises RecipeError if nothing was evaluated.
    """
    run = read_run(run_dir) if RunDirectory(path=run_dir).stages.is_dir() else None
    evaluated = read_evaluated(run) if run is not None else []
    if run is None or not evaluated:
        raise RecipeError(
            f"{run_dir} holds no finished evaluation",
            hint=f"posttrain run RECIPE --run-dir {run_dir}",
        )
    suite = evaluated[0]
    changes = measured_changes(suite, read_prompts(run))
    seed, commit = run.recipe.get("seed"), run.environment.get("commit")
    columns, rows = result_table(result_rows(suite.results, run.stages))
    return Result(
        name=f"results-{run.name}-seed-{seed}",
        title=f"What each stage did: {run.name}-seed-{seed}",
        columns=columns,
        rows=rows,
        figures={
            "suite": suite.suite,
            "stages": {point: result.as_json() for point, result in suite.results.items()},
            "changes": [_figures(change) for change in changes],
            "seed": seed,
            "commit_of_run": commit,
        },
        notes=[
            f"Run at commit {commit}, seed {seed}, suite {suite.suite}. Tokens and seconds are the "
            "training stage's, for base the evaluation's.",
            "Differences of the macro average, paired over the prompts, with 95 % intervals: "
            + "; ".join(_words(change) for change in changes)
            + ".",
        ],
    )


def _figures(change: Change) -> dict[str, Any]:
    return {
        "before": change.before,
        "after": change.after,
        "macro": asdict(change.macro),
        "capabilities": {name: asdict(found) for name, found in change.capabilities.items()},
    }


def _words(change: Change) -> str:
    found = change.macro
    return (
        f"{change.after} - {change.before} {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    )
