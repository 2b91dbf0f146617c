"""Time and memory of a step of LoRA on Llama 4's routed experts, against the alternatives."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.experts.contenders import (
    CONTENDERS,
    FLOOR,
    OURS,
    ExpertWork,
    contender,
)
from benchmarks.experts.costs import Cost, cost_of, loss_of
from posttrain.bench.measure import Result, spread_of, take_turns

LEARNING_RATE = 1e-4


WORKS: Mapping[str, ExpertWork] = {
    "whole model, E = 16": ExpertWork(
        num_experts=16,
        hidden_size=256,
        intermediate_size=512,
        rank=16,
        num_tokens=1024,
        num_layers=4,
    ),
    "one layer, E = 16": ExpertWork(
        num_experts=16, hidden_size=640, intermediate_size=1024, rank=16, num_tokens=2048
    ),
    "one layer, E = 128": ExpertWork(
        num_experts=128, hidden_size=512, intermediate_size=1024, rank=8, num_tokens=2048
    ),
}
"""Shapes that the targets are about."""
SCOUT_LAYERS: Mapping[str, ExpertWork] = {
    f"a layer of Scout's shape, {num_tokens:,} tokens": ExpertWork(
        num_experts=16,
        hidden_size=5120,
        intermediate_size=8192,
        rank=16,
        num_tokens=num_tokens,
    )
    for num_tokens in (8192, 16384)
}
"""Shapes for CUDA, in bfloat16."""
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Peak TFLOP/s in bfloat16 without sparsity, from NVIDIA's data sheets."""
SWEPT = ExpertWork(
    num_experts=16, hidden_size=640, intermediate_size=1024, rank=16, num_tokens=2048
)
SWEEPS: Mapping[str, ExpertWork] = {
    **{f"E = {n}": replace(SWEPT, num_experts=n) for n in (1, 4, 64)},
    **{f"rank {n}": replace(SWEPT, rank=n) for n in (4, 64)},
    **{f"{n:,} tokens": replace(SWEPT, num_tokens=n) for n in (512, 8192)},
}
"""Shapes that differ from `one layer, E = 16` in one value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """A contender in training: its cost, and a step that returns its seconds."""

    cost: Cost
    step: Callable[[int], float]


def training(name: str, work: ExpertWork, device: str) -> Training:
    """Build a contender and count its second step; every step is on the same batch."""
    model = contender(name, work, device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE) if trained else None
    inputs = inputs_of(work, device)

    def step(_: int) -> float:
        gc.collect()
        started = time.perf_counter()
        loss_of(model, inputs, work).backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    step(0)
    return Training(cost=cost_of(model, optimizer, inputs, work), step=step)


def inputs_of(work: ExpertWork, device: str) -> tuple[Tensor, Tensor]:
    """Return token ids (B, T) twice for a model; input (N, H) and loss weights for a layer."""
    generator = torch.Generator().manual_seed(1)
    if work.num_layers:
        shape = (work.num_tokens // work.sequence_length, work.sequence_length)
        ids_BT = torch.randint(work.vocab_size, shape, generator=generator).to(device)
        return ids_BT, ids_BT
    shape = (work.num_tokens, work.hidden_size)
    x_NH = torch.randn(shape, generator=generator).to(device, work.dtype)
    weights_NH = torch.randn(shape, generator=generator).to(device, work.dtype)
    return x_NH.requires_grad_(), weights_NH


def bench_experts(
    *,
    works: Mapping[str, ExpertWork],
    contenders: Collection[str] = tuple(CONTENDERS),
    name: str = "experts",
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    device: str = "cpu",
    num_rounds: int = 5,
) -> Result:
    """Train every contender, posttrain among them, on every shape, in turns."""
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    for title, shape in works.items():
        for dtype in dtypes:
            work = replace(shape, dtype=dtype)
            field = {who: training(who, work, device) for who in contenders}
            seconds = take_turns(
                {who: one.step for who, one in field.items()}, num_rounds=num_rounds, num_warmups=0
            )
            label = f"{title}, {str(dtype).removeprefix('torch.')}"
            costs = {who: one.cost for who, one in field.items()}
            figures[label] = {
                "work": {**asdict(work), "dtype": str(dtype)},
                "costs": {who: asdict(cost) for who, cost in costs.items()},
                "seconds": seconds,
            }
            rows += [_row(label, who, seconds, costs, work) for who in contenders]
    return Result(
        name=f"{name}-{device}",
        title="LoRA on routed experts",
        columns=COLUMNS,
        rows=rows,
        figures=figures,
        notes=[
            f"{num_rounds} rounds in turns after two steps that do not count; a step is forward, "
            "backward and AdamW; ratios are of one round's times.",
            "FLOPs: of matrix products and attention, as dispatched. saved: held for the backward "
            "pass, weights left out. peak: of tensors, above what was there before the step.",
            f"{FLOOR}: the same adapters on a model without routing, which computes as much per "
            "token.",
            *_mfu(figures, device),
        ],
    )


def _mfu(figures: Mapping[str, Any], device: str) -> list[str]:
    """Describe posttrain's model FLOPs utilisation on a known GPU."""
    if device != "cuda":
        return []
    name = torch.cuda.get_device_name()
    peak = next((tflops for part, tflops in PEAK_TFLOPS.items() if part in name), None)
    if peak is None:
        return [f"{name}: its peak is not known here, so no MFU."]
    told: list[str] = []
    for label, found in figures.items():
        seconds = spread_of(found["seconds"][OURS]).median
        share = found["costs"][OURS]["flops"] / seconds / 1e12 / peak
        told.append(f"{label}: {share:.1%} MFU, of {name}'s {peak:g} TFLOP/s.")
    return told


COLUMNS = [
    "work",
    "trained as",
    "tokens/s, median",
    "its time / posttrain's, median",
    "lowest",
    "highest",
    "its FLOPs / posttrain's",
    "TFLOP/s",
    "saved MB",
    "peak MB",
]


def _row(
    label: str,
    name: str,
    seconds: Mapping[str, Sequence[float]],
    costs: Mapping[str, Cost],
    work: ExpertWork,
) -> list[str]:
    median = spread_of(seconds[name]).median
    times = spread_of([a / b for a, b in zip(seconds[name], seconds[OURS], strict=True)])
    cost = costs[name]
    return [
        label,
        name,
        f"{work.num_tokens / median:,.0f}",
        *(f"{value:.2f}" for value in (times.median, times.low, times.high)),
        f"{cost.flops / costs[OURS].flops:.2f}",
        f"{cost.flops / median / 1e12:.3g}",
        f"{cost.saved_bytes / 1e6:,.1f}",
        f"{cost.peak_bytes / 1e6:,.1f}",
    ]
