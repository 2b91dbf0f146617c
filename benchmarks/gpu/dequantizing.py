"""Triton kernels that dequantize on CUDA: each code read once, each weight written once.

Contenders of `posttrain.models.quantized`, which takes 11 bytes a weight for fp8 and 30 for nf4
where these take 3 and 2.5. They round as it does: both give the same bits.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 1024
"""Size of a program's tile."""
ROWS = 32
"""Codes in a program's tile: those of one nf4 block."""
FP8_ROWS = 16


def dequantize_nf4(codes: Tensor, scale: Tensor, levels: Tensor, out: Tensor) -> None:
    """Write `levels[code] * scale` to `out`.

    codes (..., in / 2, out), two inputs a byte, the even one in the low half; scale
    (..., in / 64, 1, out); levels (16,) and out (..., in, out) of one dtype; all contiguous.
    """
    fan_out = codes.shape[-1]
    grid = (codes.numel() // fan_out // ROWS, triton.cdiv(fan_out, COLUMNS))
    _kernel(_nf4)[grid](codes, scale, levels, out, fan_out, ROWS=ROWS, COLUMNS=COLUMNS)


def dequantize_fp8(codes: Tensor, scale: Tensor, values: Tensor, out: Tensor) -> None:
    """Write `values[code] * scale` to `out`.

    codes (..., in, out); scale (..., 1, out); values (256,) those of e4m3, in `out`'s dtype; out
    (..., in, out); all contiguous.
    """
    fan_in, fan_out = codes.shape[-2:]
    lead = codes.numel() // fan_in // fan_out
    grid = (triton.cdiv(fan_in, FP8_ROWS), triton.cdiv(fan_out, COLUMNS), lead)
    _kernel(_fp8)[grid](codes, scale, values, out, fan_in, fan_out, ROWS=FP8_ROWS, COLUMNS=COLUMNS)


def _kernel(function: Any) -> Any:
    """Triton's decorator gives a function a grid, of which its types know nothing."""
    return function


@triton.jit
def _nf4(codes, scale, levels, out, fan_out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = columns < fan_out
    factor = tl.load(scale + block * fan_out + columns, mask=mask, other=0.0).to(tl.float32)
    for row in range(ROWS):
        pair = block * ROWS + row
        code = tl.load(codes + pair * fan_out + columns, mask=mask, other=0).to(tl.int32)
        even = tl.load(levels + (code & 15)).to(tl.float32) * factor
        odd = tl.load(levels + (code >> 4)).to(tl.float32) * factor
        place = out + 2 * pair * fan_out + columns
        tl.store(place, even.to(out.dtype.element_ty), mask=mask)
        tl.store(place + fan_out, odd.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _fp8(codes, scale, values, out, fan_in, fan_out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    expert = tl.program_id(2).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = columns < fan_out
    factor = tl.load(scale + expert * fan_out + columns, mask=mask, other=0.0).to(tl.float32)
    for row in range(ROWS):
        line = tl.program_id(0) * ROWS + row
        inside = columns < tl.where(line < fan_in, fan_out, 0)
        place = (expert * fan_in + line) * fan_out + columns
        code = tl.load(codes + place, mask=inside, other=0).to(tl.int32)
        value = tl.load(values + code).to(tl.float32) * factor
        tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)
