"""What a step of LoRA on Llama 4's routed experts costs, against what one would use instead."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.bench.expert_contenders import (
    CONTENDERS,
    FLOOR,
    OURS,
    ExpertWork,
    contender,
)
from posttrain.bench.record import Result
from posttrain.bench.spread import Spread, spread_of, take_turns

LEARNING_RATE = 1e-4
CLEAR_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One training step: forward, backward, AdamW."""

    seconds: float
    saved_bytes: int
    """Held for the backward pass, weights not counted."""
    peak_bytes: int
    """Most memory above that before the step."""


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
        num_experts=128, hidden_size=256, intermediate_size=512, rank=8, num_tokens=2048
    ),
}
"""What the targets are about."""
SWEPT = ExpertWork(
    num_experts=16, hidden_size=640, intermediate_size=1024, rank=16, num_tokens=2048
)
SWEEPS: Mapping[str, ExpertWork] = {
    **{f"E = {n}": replace(SWEPT, num_experts=n) for n in (1, 4, 64)},
    **{f"rank {n}": replace(SWEPT, rank=n) for n in (4, 64)},
    **{f"{n:,} tokens": replace(SWEPT, num_tokens=n) for n in (512, 8192)},
}
"""One thing changed at a time from `one layer, E = 16`."""


def step_of(name: str, work: ExpertWork, device: str) -> Callable[[int], Step]:
    """A contender's step on the same batch in every round."""
    model = contender(name, work, device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE) if trained else None
    inputs = inputs_of(work, device)

    def step(_: int) -> Step:
        gc.collect()
        saved: dict[int, int] = {}
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        before = _reset_peak(device)
        started = time.perf_counter()
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast(device, torch.bfloat16, enabled=work.dtype == torch.bfloat16),
        ):
            loss = loss_of(model, inputs, work)
        saved_bytes = sum(saved.values())
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        _wait(device)
        seconds = time.perf_counter() - started
        return Step(seconds=seconds, saved_bytes=saved_bytes, peak_bytes=_peak(device) - before)

    return step


def inputs_of(work: ExpertWork, device: str) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) twice for a model; for a layer its input (N, H) and the loss's weights."""
    generator = torch.Generator().manual_seed(1)
    if work.num_layers:
        shape = (work.num_tokens // work.sequence_length, work.sequence_length)
        ids_BT = torch.randint(work.vocab_size, shape, generator=generator).to(device)
        return ids_BT, ids_BT
    shape = (work.num_tokens, work.hidden_size)
    x_NH = torch.randn(shape, generator=generator).to(device, work.dtype)
    weights_NH = torch.randn(shape, generator=generator).to(device, work.dtype)
    return x_NH.requires_grad_(), weights_NH


def loss_of(model: nn.Module, inputs: tuple[Tensor, Tensor], work: ExpertWork) -> Tensor:
    """The step's loss."""
    if work.num_layers:
        return model(input_ids=inputs[0], labels=inputs[1]).loss
    return (model(inputs[0]) * inputs[1]).sum()


def bench_experts(
    *,
    works: Mapping[str, ExpertWork] = WORKS,
    contenders: Collection[str] = tuple(CONTENDERS),
    name: str = "experts",
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    device: str = "cpu",
    num_rounds: int = 5,
) -> Result:
    """Train every contender, ours among them, on every work, in turns."""
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    for title, shape in works.items():
        for dtype in dtypes:
            work = replace(shape, dtype=dtype)
            taken = take_turns(
                {who: step_of(who, work, device) for who in contenders}, num_rounds=num_rounds
            )
            label = f"{title}, {str(dtype).removeprefix('torch.')}"
            figures[label] = {
                "work": {**asdict(work), "dtype": str(dtype)},
                "steps": {who: [asdict(s) for s in steps] for who, steps in taken.items()},
            }
            rows += [_row(label, who, taken, work) for who in contenders]
    return Result(
        name=f"{name}-{device}",
        title="LoRA on routed experts",
        columns=[
            "work",
            "trained as",
            "tokens/s, median",
            "its time / posttrain's, median",
            "lowest",
            "highest",
            "saved MB",
            "peak MB",
        ],
        rows=rows,
        figures=figures,
        notes=[
            f"{num_rounds} rounds in turns after one that is not counted; a step is forward, "
            "backward and AdamW; ratios are of one round's times. saved: held for the backward "
            "pass, weights left out. peak: above what was there before the step.",
            f"{OURS} over {FLOOR}: the same adapters on a model without routing, which computes as "
            "much per token.",
        ],
    )


def ratio(taken: Mapping[str, Sequence[Step]], name: str) -> Spread:
    """How many times ours another contender takes, round by round."""
    pairs = zip(taken[name], taken[OURS], strict=True)
    return spread_of([other.seconds / ours.seconds for other, ours in pairs])


def _row(label: str, name: str, taken: Mapping[str, Sequence[Step]], work: ExpertWork) -> list[str]:
    seconds = spread_of([s.seconds for s in taken[name]])
    times = ratio(taken, name)
    return [
        label,
        name,
        f"{work.num_tokens / seconds.median:,.0f}",
        *(f"{value:.2f}" for value in (times.median, times.low, times.high)),
        f"{taken[name][-1].saved_bytes / 1e6:,.1f}",
        f"{max(s.peak_bytes for s in taken[name]) / 1e6:,.1f}",
    ]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _reset_peak(device: str) -> int:
    """Forget the peak so far; return the bytes in use."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    CLEAR_PEAK.write_text("5")  # proc(5): the peak becomes what is resident now
    return _peak(device)


def _peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    )
    return int(line.split()[1]) * 1024
