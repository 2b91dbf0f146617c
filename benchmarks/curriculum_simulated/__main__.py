"""`python -m benchmarks.curriculum_simulated`: every curriculum on simulated learners."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command import check_names, run_bed
from benchmarks.curriculum_simulated.pools import POOLS
from benchmarks.curriculum_simulated.report import NAME, simulated_result
from benchmarks.curriculum_simulated.suite import run_suite
from benchmarks.curriculum_tables import FirstSeed, NumSeeds, PoolNames, write_plots
from posttrain.cli.bench import OutFolder, show_result
from posttrain.cli.options import AsJson


def bench(
    pools: PoolNames,
    out: OutFolder = None,
    num_seeds: NumSeeds = 8,
    first_seed: FirstSeed = 0,
    num_processes: Annotated[
        int, typer.Option("--processes", min=1, help="Number of processes.")
    ] = 2,
    as_json: AsJson = False,
) -> None:
    """Train simulated learners under every curriculum; show what each saves against uniform.

    Finished runs are kept in OUT/curriculum-simulated.jsonl, where the next call goes on.
    """
    check_names("--pool", pools, POOLS)
    with tempfile.TemporaryDirectory() as scratch:
        rows = run_suite(
            (out or Path(scratch)) / f"{NAME}.jsonl",
            seeds=range(first_seed, first_seed + num_seeds),
            pools=pools or list(POOLS),
            num_processes=num_processes,
        )
    show_result(simulated_result(rows), out, as_json)
    if out is not None:
        write_plots(rows, out, NAME)


if __name__ == "__main__":
    run_bed(bench)
