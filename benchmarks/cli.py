"""`python -m benchmarks.cli`: seconds of the quick commands, process start included."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command import run_bed
from posttrain.bench.measure import Result, spread_of, take_turns
from posttrain.cli.bench import OutFolder, show_result
from posttrain.cli.options import AsJson
from posttrain.errors import SetupError

COMMANDS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("--help",), 0.15),
    (("check", "recipes/quickstart.yaml"), 0.5),
)
"""Arguments of each command, and the limit of its median in seconds."""


def bench(
    out: OutFolder = None,
    num_runs: Annotated[
        int, typer.Option("--runs", min=1, help="Number of runs of each command.")
    ] = 10,
    as_json: AsJson = False,
) -> None:
    """Time the quick commands as whole processes."""
    show_result(bench_latency(num_runs=num_runs), out, as_json)


def bench_latency(*, num_runs: int = 10) -> Result:
    """Time each command as a whole process, in turns; the first round only warms the disk cache."""
    script = Path(sys.executable).with_name("posttrain")
    if not script.exists():
        raise SetupError(
            f"no command {script} beside this Python", hint=f"{sys.executable} -m pip install -e ."
        )
    timers = {" ".join(args): _timer([str(script), *args]) for args, _ in COMMANDS}
    taken = take_turns(timers, num_rounds=num_runs)
    limits = {" ".join(args): limit for args, limit in COMMANDS}
    spreads = {name: spread_of(seconds) for name, seconds in taken.items()}
    return Result(
        name="cli",
        title="Quick commands",
        columns=["command", "median s", "fastest s", "slowest s", "limit s", "within"],
        rows=[
            [
                f"`posttrain {name}`",
                *(f"{seconds:.3f}" for seconds in (spread.median, spread.low, spread.high)),
                f"{limits[name]:g}",
                "yes" if spread.median <= limits[name] else "no",
            ]
            for name, spread in spreads.items()
        ],
        figures={
            name: {
                "seconds": taken[name],
                "median": spread.median,
                "limit": limits[name],
                "within": spread.median <= limits[name],
            }
            for name, spread in spreads.items()
        },
        notes=[f"Whole processes, {num_runs} of each in turns after one that is not counted."],
    )


def _timer(command: Sequence[str]) -> Callable[[int], float]:
    def run(_: int) -> float:
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if done.returncode != 0:
            raise SetupError(
                f"{' '.join(command)} ended with exit code {done.returncode}: "
                + (done.stderr or done.stdout).strip()[-500:],
                hint="run it from a checkout, or mend what it says, then measure again",
            )
        return seconds

    return run


if __name__ == "__main__":
    run_bed(bench)
