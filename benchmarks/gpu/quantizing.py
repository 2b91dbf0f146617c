"""Quantizing and dequantizing frozen weights: the same bits on CPU and CUDA, and seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.cases import (
    Case,
    Found,
    NotMeasured,
    Setting,
    median_seconds,
    milliseconds,
    wall_seconds,
)
from benchmarks.gpu.dequantizing import dequantize_fp8, dequantize_nf4
from posttrain.models.quantized import FORMATS, Format, Fp8, Nf4, QuantizedWeight

FORMAT_NAMES: tuple[Format, ...] = ("fp8", "nf4")
SCOUT, TINY = (16, 5120, 16384), (4, 128, 96)
"""Gate and up projections of a layer's experts."""
ROUTED_WEIGHTS = 96.64e9
"""Number of weights of Scout's routed experts."""


def cases(setting: Setting) -> Mapping[str, Case]:
    """Bits first, then seconds."""
    found: dict[str, Case] = {}
    for format in FORMAT_NAMES:
        for values in VALUES:
            found[f"{format}, bits of CPU and device, {values}"] = partial(
                same_bits, setting, format, values
            )
    for format in FORMAT_NAMES:
        found[f"{format}, quantizing"] = partial(quantize_seconds, setting, format)
        found[f"{format}, dequantizing a layer's gate and up"] = partial(
            dequantize_seconds, setting, format
        )
    return found


def _awkward(shape: tuple[int, ...]) -> Tensor:
    """Draw values whose quotients are ties between two codes, with zeros of both signs."""
    levels = torch.arange(-448, 449, dtype=torch.float32) / 448
    return levels[torch.randint(len(levels), shape)]


VALUES: Mapping[str, Callable[[tuple[int, ...]], Tensor]] = {
    "normal bf16": lambda shape: (0.02 * torch.randn(shape)).bfloat16(),
    "normal fp32": lambda shape: 0.02 * torch.randn(shape),
    "ties": _awkward,
    "subnormal": lambda shape: 1e-39 * torch.randn(shape),
    "huge": lambda shape: 1e37 * torch.randn(shape),
    "zeros": torch.zeros,
}


def same_bits(setting: Setting, format: Format, values: str) -> Found:
    """Quantize the same weights on both and dequantize them on both."""
    torch.manual_seed(0)
    weight = VALUES[values](TINY if setting.is_tiny else (2, 5120, 2048))
    here, there = FORMATS[format](weight), FORMATS[format](weight.to(setting.device))
    different = {
        name: int((mine != other.cpu()).sum())
        for name, mine, other in (
            ("codes", here.codes, there.codes),
            ("scales", bits(here.scale), bits(there.scale)),
            ("weights", bits(here.dense()), bits(there.dense())),
        )
    }
    total = here.codes.numel()
    equal = not any(different.values())
    told = ", ".join(f"{count:,} {name}" for name, count in different.items() if count)
    return Found(
        text=f"{total:,} codes, scales and weights: equal" if equal else f"differ: {told}",
        figures={"different": different, "num_codes": total},
    )


def bits(tensor: Tensor) -> Tensor:
    """Return floats as integers of their size, so that -0 is not 0 and NaN is itself."""
    tensor = tensor.detach()
    return tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32)


def quantize_seconds(setting: Setting, format: Format) -> Found:
    """Time quantizing on one CPU thread, on all, on the device, and there and back."""
    _, fan_in, fan_out = TINY if setting.is_tiny else SCOUT
    weight = (0.02 * torch.randn(1, fan_in, fan_out)).bfloat16()
    rates: dict[str, float] = {}
    threads = torch.get_num_threads()
    for name, number in (("one thread", 1), (f"{threads} threads", threads)):
        torch.set_num_threads(number)
        rates[name] = weight.numel() / wall_seconds(lambda: FORMATS[format](weight), setting)
    on_device = weight.to(setting.device)
    rates["device"] = weight.numel() / median_seconds(
        lambda: FORMATS[format](on_device), setting, repeats=5
    )

    def there_and_back() -> None:
        FORMATS[format](weight.to(setting.device)).cpu()

    rates["device, from and to the host"] = weight.numel() / wall_seconds(there_and_back, setting)
    return Found(
        text=", ".join(
            f"{name} {rate / 1e6:,.0f} M weights/s (Scout's experts {ROUTED_WEIGHTS / rate:,.0f} s)"
            for name, rate in rates.items()
        ),
        figures={"weights_per_second": rates, "num_cpus": os.cpu_count()},
    )


def dequantize_seconds(setting: Setting, format: Format) -> Found:
    """Time `dense`, and a Triton kernel in its place."""
    shape = TINY if setting.is_tiny else SCOUT
    weight = torch.empty(shape, dtype=torch.bfloat16, device=setting.device)
    quantized = FORMATS[format](weight.normal_(std=0.02))
    del weight
    out = torch.empty(shape, dtype=torch.bfloat16, device=setting.device)
    as_it_is = median_seconds(quantized.dense, setting)
    if not setting.is_cuda:
        raise NotMeasured("no CUDA device for Triton")
    fused = fused_dequantizing(quantized, out)
    fused()
    equal = out.equal(quantized.dense())
    seconds = median_seconds(fused, setting)
    moved = out.numel() * (2 + (1 if format == "fp8" else 0.5))
    return Found(
        text=f"dense() {milliseconds(as_it_is)}; Triton {milliseconds(seconds)} "
        f"({moved / seconds / 1e12:.2f} TB/s), bits {'equal' if equal else 'DIFFER'}",
        figures={"dense_seconds": as_it_is, "triton_seconds": seconds, "equal": equal},
    )


def fused_dequantizing(quantized: QuantizedWeight, out: Tensor) -> Callable[[], None]:
    """Return the kernel's call for quantized weights."""
    codes, scale = quantized.codes.detach(), quantized.scale.detach()
    if isinstance(quantized, Nf4):
        levels = quantized.levels.to(out.device)
        return lambda: dequantize_nf4(codes, scale, levels, out)
    assert isinstance(quantized, Fp8)
    values = torch.arange(256, dtype=torch.uint8, device=out.device)
    table = values.view(torch.float8_e4m3fn).to(out.dtype)
    return lambda: dequantize_fp8(codes, scale, table, out)
