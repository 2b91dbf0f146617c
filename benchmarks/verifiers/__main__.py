"""`python -m benchmarks.verifiers`: one result per part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from benchmarks.command import run_bed
from benchmarks.verifiers.code import bench_attacks, bench_forgeries, bench_verdicts
from benchmarks.verifiers.corpora import measure_corpora
from benchmarks.verifiers.forms import measure_forms
from benchmarks.verifiers.maths import measure_agreement
from benchmarks.verifiers.speed import verify_hung, verify_speed
from posttrain.bench.measure import Result
from posttrain.cli.bench import NumRounds, OutFolder, show_result
from posttrain.cli.options import AsJson
from posttrain.rewards import close_workers

Part = Literal["speed", "hung", "maths", "forms", "corpora", "attacks", "forgeries", "code"]


def bench_verifiers(
    out: OutFolder = None,
    only: Annotated[Part | None, typer.Option(help="Measure only this part.")] = None,
    num_rounds: NumRounds = 5,
    folder: Annotated[
        Path | None,
        typer.Option(help="Holds checkouts of the public corpora."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure verifiers: speed, hung answers, agreement with people, attacks, forged code."""
    parts: Mapping[Part, Callable[[], Result]] = {
        "speed": lambda: verify_speed(num_rounds=num_rounds),
        "hung": lambda: verify_hung(num_rounds=num_rounds),
        "maths": measure_agreement,
        "forms": measure_forms,
        "attacks": bench_attacks,
        "forgeries": bench_forgeries,
        "code": bench_verdicts,
    }
    for part, measure in parts.items():
        if only in (None, part):
            show_result(measure(), out, as_json)
            close_workers()
    if only in (None, "corpora") and folder is not None:
        for result in measure_corpora(folder):
            show_result(result, out, as_json)
        close_workers()


if __name__ == "__main__":
    run_bed(bench_verifiers)
