"""Routed experts with LoRA on Scout's shapes: grouped products against a loop over the experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from peft import LoraConfig
from torch import Tensor
from torch.nn import functional
from transformers import Llama4TextConfig
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts

from benchmarks.gpu.cases import (
    Case,
    Found,
    Setting,
    median_seconds,
    milliseconds,
    peak_bytes,
    relative_error,
)
from posttrain.models.experts import GroupedExperts
from posttrain.models.moe_lora import LoraExperts

NUM_EXPERTS = 16
SCALING = 2.0
RANKS = (8, 16)
ODD_RANK = 4
"""In bfloat16 its rows are not multiples of 16 bytes, so that factors are padded."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths of a layer and the rows that reach its experts."""

    hidden: int
    inner: int
    rows: int


SCOUT = Shape(5120, 8192, 8192)
TINY = Shape(64, 96, 512)


def cases(setting: Setting) -> Mapping[str, Case]:
    """Errors for every rank and layout, then seconds."""
    shape = TINY if setting.is_tiny else SCOUT
    found: dict[str, Case] = {}
    for rank in (*RANKS, ODD_RANK):
        for layout in LAYOUTS if rank in RANKS else ("odd",):
            name = f"errors, rank {rank}, {layout} groups"
            found[name] = partial(errors, setting, shape, rank, layout)
    for rows in (shape.rows // 8, shape.rows, 2 * shape.rows):
        timed = Shape(shape.hidden, shape.inner, rows)
        for layout in ("even", "odd"):
            name = f"seconds, {rows:,} rows, {layout} groups, rank 16"
            found[name] = partial(seconds, setting, timed, layout)
    return found


def even(rows: int) -> list[int]:
    """Give every expert as many rows."""
    return [rows // NUM_EXPERTS] * NUM_EXPERTS


def odd(rows: int) -> list[int]:
    """Leave every fifth expert, the first and the last without rows; give the others odd counts."""
    counts = [0 if i % 5 == 0 else 1 + 2 * ((7 * i) % 4) for i in range(NUM_EXPERTS)]
    counts[7] += rows - sum(counts)
    return counts


def one(rows: int) -> list[int]:
    """Give all rows to the fourth expert."""
    return [rows * (i == 3) for i in range(NUM_EXPERTS)]


LAYOUTS: Mapping[str, Callable[[int], list[int]]] = {"even": even, "odd": odd, "one": one}


@cache
def base(shape: tuple[int, int], device: str) -> GroupedExperts:
    """Build frozen experts in bfloat16 with random weights."""
    hidden, inner = shape
    config = Llama4TextConfig(
        hidden_size=hidden, intermediate_size=inner, num_local_experts=NUM_EXPERTS
    )
    with torch.device(device):
        torch.manual_seed(0)
        experts = Llama4TextExperts(config).to(torch.bfloat16)
        for weight in experts.parameters():
            weight.data.normal_(std=weight.shape[1] ** -0.5)
    experts.__class__ = GroupedExperts
    return experts.requires_grad_(False)  # pyright: ignore[reportReturnType] its class was changed


def adapted(shape: Shape, rank: int, device: str) -> LoraExperts:
    """Put fp32 adapters with bfloat16 values on the experts, B not zero."""
    experts = base((shape.hidden, shape.inner), device)
    config = LoraConfig(r=rank, lora_alpha=int(SCALING * rank))
    layer = LoraExperts(experts, "default", config=config, r=rank, lora_alpha=int(SCALING * rank))
    for name, factor in layer.named_parameters():
        if "lora_" in name:
            if "lora_B" in name:
                torch.nn.init.normal_(factor, std=0.2 * rank**-0.5)
            factor.data = factor.data.bfloat16().float()
            factor.requires_grad_()
    return layer


Factors = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def factors_of(layer: LoraExperts) -> Factors:
    """Return (A, B) of the gate-and-up and of the down projection."""
    return layer.factors("default", "gate_up_proj"), layer.factors("default", "down_proj")


def loop(
    x_NH: Tensor, counts: list[int], layer: GroupedExperts, factors: Factors, dtype: torch.dtype
) -> Tensor:
    """Run the experts one by one with plain products in `dtype`, adapters included."""
    (A1, B1), (A2, B2) = factors
    outputs: list[Tensor] = []
    for e, rows in enumerate(x_NH.to(dtype).split(counts)):
        gate_up = rows @ layer.gate_up_proj[e].to(dtype)
        gate_up = gate_up + SCALING * (rows @ A1[e].to(dtype)) @ B1[e].to(dtype)
        gate, up = gate_up.chunk(2, -1)
        hidden = up * functional.silu(gate)
        out = hidden @ layer.down_proj[e].to(dtype)
        outputs.append(out + SCALING * (hidden @ A2[e].to(dtype)) @ B2[e].to(dtype))
    return torch.cat(outputs)


def inputs_of(shape: Shape, layout: str, device: str) -> tuple[Tensor, Tensor, list[int], Tensor]:
    """Draw rows, the gradient of the output, and the group ends."""
    counts = LAYOUTS[layout](shape.rows)
    generator = torch.Generator(device).manual_seed(1)
    x, dy = (
        torch.randn(shape.rows, shape.hidden, generator=generator, device=device).bfloat16()
        for _ in range(2)
    )
    ends = torch.tensor(counts, device=device).cumsum(0).to(torch.int32)
    return x, dy, counts, ends


def errors(setting: Setting, shape: Shape, rank: int, layout: str) -> Found:
    """Compare output and all gradients with a loop in fp32, beside a loop in bfloat16."""
    layer = adapted(shape, rank, setting.device)
    x, dy, counts, ends = inputs_of(shape, layout, setting.device)
    trained = {f"d{n}": f for n, f in zip(("A1", "B1", "A2", "B2"), _flat(layer), strict=True)}

    def grown(run: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        leaf = x.clone().requires_grad_()
        out = run(leaf)
        grads = torch.autograd.grad(out, [leaf, *trained.values()], dy.to(out.dtype))
        return {"y": out.detach(), "dx": grads[0], **dict(zip(trained, grads[1:], strict=True))}

    def ours(leaf: Tensor) -> Tensor:
        with torch.autocast(setting.device, torch.bfloat16):
            return layer(leaf, ends)

    factors = factors_of(layer)
    found = grown(ours)
    naive = grown(lambda leaf: loop(leaf, counts, layer.experts, factors, torch.bfloat16))
    exact = grown(lambda leaf: loop(leaf, counts, layer.experts, factors, torch.float32))
    figures = {
        who: {key: relative_error(one[key], exact[key]) for key in exact}
        for who, one in (("posttrain", found), ("loop", naive))
    }
    empty = [i for i, count in enumerate(counts) if count == 0]
    idle = max(float(found[key][empty].abs().max()) for key in trained) if empty else 0.0
    worst = {who: max(errors.values()) for who, errors in figures.items()}
    return Found(
        text=f"worst error {worst['posttrain']:.2e}, the loop's {worst['loop']:.2e}"
        + (f"; gradient of the {len(empty)} idle experts {idle:g}" if empty else ""),
        figures={**figures, "counts": counts, "idle_gradient": idle},
    )


def _flat(layer: LoraExperts) -> list[Tensor]:
    return [factor for pair in factors_of(layer) for factor in pair]


def seconds(setting: Setting, shape: Shape, layout: str) -> Found:
    """Time forward and backward against the loop, and against dense products of the same size."""
    layer = adapted(shape, 16, setting.device)
    x, dy, counts, ends = inputs_of(shape, layout, setting.device)
    x.requires_grad_()
    factors = factors_of(layer)
    first = layer.experts.gate_up_proj[0]
    second = layer.experts.down_proj[0]

    def ours() -> Tensor:
        with torch.autocast(setting.device, torch.bfloat16):
            return layer(x, ends)

    def dense() -> Tensor:
        gate, up = (x @ first).chunk(2, -1)
        return (up * functional.silu(gate)) @ second

    ways: dict[str, Callable[[], Tensor]] = {
        "posttrain": ours,
        "loop": lambda: loop(x, counts, layer.experts, factors, torch.bfloat16),
        "dense": dense,
    }
    base_flops = 2 * shape.rows * 3 * shape.hidden * shape.inner
    figures: dict[str, dict[str, float]] = {}
    for who, forward in ways.items():

        def both(forward: Callable[[], Tensor] = forward) -> None:
            forward().backward(dy)
            x.grad = None
            for factor in _flat(layer):
                factor.grad = None

        with torch.no_grad():
            alone = median_seconds(forward, setting)
        whole = median_seconds(both, setting)
        figures[who] = {
            "forward_seconds": alone,
            "forward_backward_seconds": whole,
            "tflops": 2 * base_flops / whole / 1e12,
            "peak_bytes": peak_bytes(both, setting),
        }
    told = ", ".join(
        f"{who} {milliseconds(f['forward_seconds'])} and "
        f"{milliseconds(f['forward_backward_seconds'])} ({f['tflops']:.0f} TFLOP/s)"
        for who, f in figures.items()
    )
    return Found(text=f"forward, forward and backward: {told}", figures=figures)
