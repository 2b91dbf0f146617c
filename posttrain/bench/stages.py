"""Where a finished run spent its time and memory, read from its manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.bench.measure import Result
from posttrain.errors import RecipeError
from posttrain.run_directory import Manifest, RunDirectory


def bench_stages(run_dir: Path) -> Result:
    """Seconds and peak memory of every finished stage of a run directory."""
    finished = RunDirectory(path=run_dir).finished_stages().values()
    stages = [_stage(stage.manifest) for stage in finished]
    if not stages:
        raise RecipeError(
            f"{run_dir} holds no finished stage", hint=f"posttrain run RECIPE --run-dir {run_dir}"
        )
    seconds = sum(stage["seconds"] for stage in stages)
    peak = max((s["peak_rss_bytes"] for s in stages if s["peak_rss_bytes"]), default=None)
    total = {"stage": "all", "seconds": seconds, "peak_rss_bytes": peak}
    return Result(
        name=f"stages-{run_dir.resolve().name}",
        title=f"Stage by stage: {run_dir.resolve().name}",
        columns=["stage", "seconds", "share", "peak memory GiB"],
        rows=[
            [
                stage["stage"],
                f"{stage['seconds']:.1f}",
                f"{stage['seconds'] / seconds:.0%}" if seconds else "-",
                f"{stage['peak_rss_bytes'] / 2**30:.2f}" if stage["peak_rss_bytes"] else "-",
            ]
            for stage in [*stages, total]
        ],
        figures={"stages": stages, "seconds": seconds, "peak_rss_bytes": peak},
    )


def _stage(manifest: Manifest) -> dict[str, Any]:
    return {
        "stage": manifest.stage,
        "seconds": manifest.seconds,
        "peak_rss_bytes": manifest.peak_rss_bytes,
        "counts": manifest.counts,
    }
