"""`python -m benchmarks.experts`: LoRA on routed experts, trained in six ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, get_args

import torch
import typer

from benchmarks.command import run_bed
from benchmarks.experts.contenders import FLOOR, LOOP, OURS
from benchmarks.experts.errors import bench_errors, bench_packed
from benchmarks.experts.speed import SCOUT_LAYERS, SWEEPS, WORKS, bench_experts
from posttrain.bench.measure import Result
from posttrain.cli.bench import NumRounds, OutFolder, show_result
from posttrain.cli.options import AsJson

Part = Literal["errors", "packed", "contenders", "sweep"]
FEW = (LOOP, OURS, FLOOR)
"""Contenders that fit where the others would take hours or hundreds of gigabytes."""


def bench(
    out: OutFolder = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="Device: CUDA if there is one.")
    ] = None,
    num_rounds: NumRounds = 5,
    only: Annotated[Part | None, typer.Option(help="Measure only this part, on the CPU.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train LoRA on routed experts in six ways, in turns: times, memory and errors."""
    has_cuda = only is None and torch.cuda.is_available()
    place = device or ("cuda" if has_cuda else "cpu")
    for result in expert_results(device=place, num_rounds=num_rounds, only=only):
        show_result(result, out, as_json)


def expert_results(*, device: str, num_rounds: int, only: Part | None = None) -> Iterator[Result]:
    """Measure small models against all contenders; on CUDA, layers of Scout's shape against FEW.

    `only` takes one part, on the CPU.
    """
    wanted = get_args(Part) if only is None else (only,)
    if device == "cuda":
        yield bench_experts(
            works=SCOUT_LAYERS,
            contenders=FEW,
            dtypes=(torch.bfloat16,),
            device=device,
            num_rounds=num_rounds,
        )
        return
    if "errors" in wanted:
        yield bench_errors()
    if "packed" in wanted:
        yield bench_packed()
    if "contenders" in wanted:
        yield bench_experts(works=WORKS, device=device, num_rounds=num_rounds)
    if "sweep" in wanted:
        yield bench_experts(
            works=SWEEPS, contenders=FEW, name="experts-sweep", device=device, num_rounds=num_rounds
        )


if __name__ == "__main__":
    run_bed(bench)
