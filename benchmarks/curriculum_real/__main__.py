"""`python -m benchmarks.curriculum_real`: every curriculum on nano Llama 4 models."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command import check_names, run_bed
from benchmarks.curriculum_real.pools import REAL_POOLS
from benchmarks.curriculum_real.report import NAME, real_result
from benchmarks.curriculum_real.suite import finished_rows, real_arms, run_real_suite
from benchmarks.curriculum_tables import FirstSeed, NumSeeds, PoolNames, write_plots
from posttrain.cli.bench import OutFolder, show_result
from posttrain.cli.options import AsJson
from posttrain.pipeline.environment import cache_dir


def bench(
    pools: PoolNames,
    arms: Annotated[
        list[str],
        typer.Option(
            "--arm",
            default_factory=list,
            show_default=False,
            help="Run uniform and this arm only; may be repeated.",
        ),
    ],
    out: OutFolder = None,
    num_seeds: NumSeeds = 8,
    first_seed: FirstSeed = 0,
    finished: Annotated[
        bool, typer.Option("--finished", help="Run nothing: show the finished runs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train nano Llama 4 models under every curriculum; show what each saves against uniform.

    Finished runs are kept in OUT/curriculum-real.jsonl, where the next call goes on.
    """
    check_names("--pool", pools, REAL_POOLS)
    check_names("--arm", arms, real_arms())
    seeds = range(first_seed, first_seed + num_seeds)
    pools, arms = pools or list(REAL_POOLS), arms or list(real_arms())
    with tempfile.TemporaryDirectory() as scratch:
        ledger = (out or Path(scratch)) / f"{NAME}.jsonl"
        if finished:
            rows = finished_rows(ledger, seeds=seeds, pools=pools, arms=arms)
        else:
            cache = cache_dir() / "bench-curriculum"
            rows = run_real_suite(ledger, seeds=seeds, pools=pools, arms=arms, cache=cache)
    show_result(real_result(rows), out, as_json)
    if out is not None:
        write_plots(rows, out, NAME)


if __name__ == "__main__":
    run_bed(bench)
