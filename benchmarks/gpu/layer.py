"""One layer of Scout's shape in training: seconds, MFU, peak bytes against what `plan` counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any, Literal

import torch
from peft import get_peft_model
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import Llama4ForCausalLM, Llama4TextConfig

from benchmarks.gpu.cases import (
    Case,
    Found,
    NotMeasured,
    Setting,
    gigabytes,
    median_seconds,
    milliseconds,
    peak_bytes,
)
from posttrain.memory import Shapes, active_adapter_parameters, flops_per_token
from posttrain.memory.activations import Pass, pass_bytes
from posttrain.memory.per_device import trained_parameters, training_weight_bytes
from posttrain.memory.shapes import read_shapes
from posttrain.models.experts import GroupedExperts, use_grouped_experts
from posttrain.models.lora import lora_config
from posttrain.models.quantized import QuantizedLinear, quantize_experts
from posttrain.recipe.models import Frozen, Lora, LoraTarget, Model

Kind = Literal["bf16", "fp8", "nf4", "nf4 everywhere", "fp8 everywhere"]
FROZEN: Mapping[str, Frozen | None] = {
    "bf16": None,
    "fp8": Frozen(experts="fp8"),
    "nf4": Frozen(experts="nf4"),
    "fp8 everywhere": Frozen(experts="fp8", linears="fp8"),
    "nf4 everywhere": Frozen(experts="nf4", linears="nf4"),
}
TARGETS: list[LoraTarget] = ["attention", "shared_expert", "experts"]
RANK = 16
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""bfloat16 without sparsity, from NVIDIA's data sheets."""
NUM_KERNELS = 8


def cases(setting: Setting) -> Mapping[str, Case]:
    """The ceiling, then a layer kept in each way, then transformers' own experts."""
    lengths = (64,) if setting.is_tiny else (8192, 4096)
    found: dict[str, Case] = {"one bf16 product, 8192 cubed": partial(ceiling, setting)}
    for kind in FROZEN:
        for length in lengths if kind in ("bf16", "fp8", "nf4") else lengths[:1]:
            found[f"{kind}, {length:,} tokens"] = partial(training_step, setting, kind, length)
    own = "transformers' experts, adapters elsewhere, "
    found[f"{own}{lengths[-1]:,} tokens"] = partial(stock_step, setting, lengths[-1])
    return found


def config_of(setting: Setting) -> Llama4TextConfig:
    """Build the configuration of one layer, rotary and with experts, and a small vocabulary."""
    widths: dict[str, Any] = (
        {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 16}
        if setting.is_tiny
        else {"hidden_size": 5120, "intermediate_size": 8192, "num_attention_heads": 40}
    )
    return Llama4TextConfig(
        vocab_size=256,
        num_hidden_layers=1,
        num_key_value_heads=2 if setting.is_tiny else 8,
        num_local_experts=16,
        num_experts_per_tok=1,
        interleave_moe_layer_step=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **widths,
    )


def base(setting: Setting) -> Any:
    """Build the frozen layer in bfloat16 on the device, with random weights."""
    with torch.device(setting.device):
        torch.manual_seed(0)
        model = Llama4ForCausalLM._from_config(
            config_of(setting), attn_implementation="sdpa", dtype=torch.bfloat16
        )
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.data.normal_(std=weight.shape[-1] ** -0.5)
    return model.requires_grad_(False)


def adapted(model: Any, frozen: Frozen | None, targets: list[LoraTarget]) -> Any:
    """Quantize the layer in place and put adapters on it, ready to train with checkpointing."""
    if frozen is not None:
        quantize(model, frozen)
    adapted = get_peft_model(model, lora_config(Lora(rank=RANK, targets=targets), model))
    adapted.train()
    adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    return adapted


def quantize(model: nn.Module, frozen: Frozen) -> None:
    """Quantize experts and linear layers as loading does."""
    for name, module in list(model.named_modules()):
        if isinstance(module, GroupedExperts) and frozen.experts is not None:
            quantize_experts(module, frozen.experts)
        elif frozen.linears is None or "router" in name or ".layers." not in name:
            continue
        elif isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, QuantizedLinear(module, frozen.linears))


def step_of(model: Any, setting: Setting, length: int) -> Callable[[], None]:
    """Return forward and backward of one sequence through the layer, head and loss left out."""
    ids = torch.randint(3, 250, (1, length), device=setting.device)
    body = model.get_base_model().model

    def step() -> None:
        with torch.autocast(setting.device, torch.bfloat16):
            out = body(input_ids=ids, use_cache=False).last_hidden_state
        out.float().mean().backward()

    return step


def training_step(setting: Setting, kind: str, length: int) -> Found:
    """Measure a layer that is kept in one way."""
    before = torch.cuda.memory_allocated() if setting.is_cuda else 0
    frozen = FROZEN[kind]
    model = base(setting)
    use_grouped_experts(model)
    model = adapted(model, frozen, TARGETS)
    resident = (torch.cuda.memory_allocated() - before) if setting.is_cuda else 0
    step = step_of(model, setting, length)
    seconds = median_seconds(step, setting, repeats=5)
    peak = peak_bytes(step, setting)
    shapes = shapes_of(setting)
    spec = Model(base="x", lora=Lora(rank=RANK, targets=TARGETS), frozen=frozen)
    # Adapters and their gradients, in fp32, are there before the step.
    planned_resident = training_weight_bytes(shapes, spec) + 8 * trained_parameters(shapes, spec)
    planned = planned_peak(setting, shapes, spec, length)
    useful, done = flops_of(shapes, spec, length)
    figures = {
        "seconds": seconds,
        "tokens_per_second": length / seconds,
        "model_tflops": useful / seconds / 1e12,
        "hardware_tflops": done / seconds / 1e12,
        "mfu": mfu(useful / seconds / 1e12, setting),
        "peak_bytes": peak,
        "planned_peak_bytes": planned,
        "resident_bytes": resident,
        "planned_resident_bytes": planned_resident,
        "kernels": kernels_of(step) if setting.is_cuda else [],
        "scout_seconds_per_pass": seconds * 48,
    }
    if not setting.is_cuda:
        return Found(text=f"{milliseconds(seconds)}", figures=figures)
    return Found(
        text=f"{milliseconds(seconds)}, {figures['mfu']:.1%} MFU "
        f"({figures['hardware_tflops']:.0f} TFLOP/s with the recomputed forward pass); "
        f"peak {gigabytes(peak)}, planned {gigabytes(planned)} ({peak / planned - 1:+.0%}); "
        f"resident {gigabytes(resident)}, planned {gigabytes(planned_resident)}",
        figures=figures,
    )


@cache
def shapes_of(setting: Setting) -> Shapes:
    """Return the layer's shapes as `plan` reads them."""
    shapes = read_shapes(config_of(setting).to_dict())
    assert shapes is not None
    return shapes


def planned_peak(setting: Setting, shapes: Shapes, spec: Model, length: int) -> int:
    """Return what `plan` counts for the pass, the loss left out."""
    assert spec.lora is not None
    run = Pass(
        sequences=1,
        length=length,
        value=2,
        is_masked=False,
        rank=RANK,
        targets=spec.lora.targets,
        frozen=spec.frozen,
        has_kernels=setting.is_cuda,
    )
    return replace(pass_bytes(shapes, run, is_checkpointed=True), logits=0).peak


def flops_of(shapes: Shapes, spec: Model, length: int) -> tuple[float, float]:
    """Return operations of a step: the useful ones, and those with the forward pass again."""
    assert spec.lora is not None
    without_head = replace(shapes, vocab_size=0)
    weights = active_adapter_parameters(shapes, spec.lora)
    each = flops_per_token(without_head, sequence_length=length, adapter_weights=weights)
    again = each.adapters / 3
    useful = each.frozen + each.adapters
    return length * useful, length * (each.frozen_recomputed + each.adapters + again)


def mfu(tflops: float, setting: Setting) -> float | None:
    """Return the share of the data sheet's peak; None where that is not known."""
    if not setting.is_cuda:
        return None
    name = torch.cuda.get_device_name()
    peak = next((value for part, value in PEAK_TFLOPS.items() if part in name), None)
    return None if peak is None else tflops / peak


def kernels_of(step: Callable[[], None]) -> list[dict[str, Any]]:
    """Return the kernels that take longest in one step."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    rows = [
        {"name": e.key[:100], "seconds": e.self_device_time_total / 1e6, "calls": e.count}
        for e in profiler.key_averages()
        if e.self_device_time_total > 0 and e.device_type == torch.autograd.DeviceType.CUDA
    ]
    return sorted(rows, key=lambda row: -row["seconds"])[:NUM_KERNELS]


def ceiling(setting: Setting) -> Found:
    """Measure one large product on random data."""
    size = 64 if setting.is_tiny else 8192
    a, b = (torch.randn(size, size, device=setting.device).bfloat16() for _ in range(2))
    seconds = median_seconds(lambda: a @ b, setting, repeats=20)
    tflops = 2 * size**3 / seconds / 1e12
    return Found(text=f"{tflops:.0f} TFLOP/s", figures={"tflops": tflops})


def stock_step(setting: Setting, length: int) -> Found:
    """Measure transformers' layer, which runs every expert on every token."""
    if setting.is_cuda and torch.cuda.mem_get_info()[0] < 40e9:
        raise NotMeasured("less than 40 GB of device memory are free")
    model = adapted(base(setting), None, ["attention", "shared_expert"])
    step = step_of(model, setting, length)
    seconds = median_seconds(step, setting, repeats=3, warmups=1)
    return Found(text=milliseconds(seconds), figures={"seconds": seconds})
