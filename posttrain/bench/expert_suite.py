"""Everything `posttrain bench experts` measures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch

from posttrain.bench.expert_contenders import FLOOR, LOOP, OURS
from posttrain.bench.expert_errors import bench_errors, bench_packed
from posttrain.bench.experts import SCOUT_LAYERS, SWEEPS, WORKS, bench_experts
from posttrain.bench.record import Result

Part = Literal["errors", "packed", "contenders", "sweep"]
FEW = (LOOP, OURS, FLOOR)
"""Contenders that fit where the others would take hours or hundreds of gigabytes."""


def expert_results(*, device: str, num_rounds: int, only: Part | None = None) -> Iterator[Result]:
    """Small models against all contenders; on CUDA layers of Scout's shape against FEW.

    With `only` just that part, on the CPU.
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
