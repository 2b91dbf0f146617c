"""Grouped matrix products: one weight per expert, on rows sorted by expert.

`y_n = x_n W_e` for every row n of expert e's group. Groups are given by their ends, the cumulative
sum of their sizes, as `torch.nn.functional.grouped_mm` takes them; a group may be empty.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional

ALIGNMENT_BYTES = 16
"""`grouped_mm` requires rows that start at multiples of this."""


class ExpertWeight(Protocol):
    """A quantised frozen weight (E, I, O)."""

    @property
    def shape(self) -> torch.Size:
        """Return (E, I, O)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the dequantised weight."""
        ...

    @property
    def device(self) -> torch.device:
        """Return the device that holds it."""
        ...

    def expert(self, index: int) -> Tensor:
        """Dequantise one expert's weight (I, O)."""
        ...

    def dense(self) -> Tensor:
        """Dequantise all experts' weights (E, I, O)."""
        ...


def grouped_linear(x_NI: Tensor, weight_EIO: Tensor | ExpertWeight, ends_E: Tensor) -> Tensor:
    """Multiply each row by its expert's weight: (N, I) -> (N, O).

    The first `ends_E[0]` rows are expert 0's, and so on; `ends_E` is int32, its last entry N. Only
    tensors that require a gradient get one, and the backward pass saves no more than it needs: with
    a frozen weight, the weight itself. Computes in the rows' dtype, or in autocast's.
    """
    device = x_NI.device.type
    if torch.is_autocast_enabled(device):
        x_NI = x_NI.to(torch.get_autocast_dtype(device))
    if isinstance(weight_EIO, Tensor):
        return cast(Tensor, _GroupedLinear.apply(x_NI, weight_EIO.to(x_NI.dtype), ends_E))
    return cast(Tensor, _FrozenGroupedLinear.apply(x_NI, weight_EIO, ends_E))


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_EIO: Tensor, ends_E: Tensor) -> Tensor:
        kept_x = x_NI if weight_EIO.requires_grad else None
        ctx.save_for_backward(kept_x, weight_EIO, ends_E)
        return products(x_NI, weight_EIO, ends_E)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_EIO, ends_E = ctx.saved_tensors
        dy_NO = grads[0].contiguous()  # an expanded gradient has stride 0, which grouped_mm refuses
        dx = (
            products(dy_NO, weight_EIO.transpose(1, 2), ends_E) if ctx.needs_input_grad[0] else None
        )
        dw = outer_products(x_NI, dy_NO, ends_E) if ctx.needs_input_grad[1] else None
        return dx, dw, None


class _FrozenGroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight: ExpertWeight, ends_E: Tensor) -> Tensor:
        ctx.weight = weight
        ctx.save_for_backward(ends_E)
        return _dequantized_products(x_NI, weight, ends_E, transposed=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (ends_E,) = ctx.saved_tensors
        dx = _dequantized_products(grads[0].contiguous(), ctx.weight, ends_E, transposed=True)
        return dx, None, None


def _dequantized_products(
    x_NI: Tensor, weight: ExpertWeight, ends_E: Tensor, *, transposed: bool
) -> Tensor:
    """Compute `products` with a quantised weight, dequantised expert by expert without a kernel."""
    if _has_kernel(x_NI):
        dense_EIO = weight.dense()
        return products(x_NI, dense_EIO.transpose(1, 2) if transposed else dense_EIO, ends_E)
    y_NO = x_NI.new_empty(len(x_NI), weight.shape[1 if transposed else 2])
    for expert, (start, end) in enumerate(_groups(ends_E)):
        if start < end:
            one_IO = weight.expert(expert)
            one_IO = one_IO.T if transposed else one_IO
            torch.mm(x_NI[start:end], one_IO, out=y_NO[start:end])
    return y_NO


def products(x_NI: Tensor, weight_EIO: Tensor, ends_E: Tensor) -> Tensor:
    """Compute `grouped_linear` without autograd."""
    if _has_kernel(x_NI):
        x_NI, weight_EIO, num_out = _aligned(x_NI, weight_EIO)
        return functional.grouped_mm(x_NI, weight_EIO, offs=ends_E)[:, :num_out]
    y_NO = x_NI.new_empty(len(x_NI), weight_EIO.shape[2])
    for expert, (start, end) in enumerate(_groups(ends_E)):
        if start < end:
            torch.mm(x_NI[start:end], weight_EIO[expert], out=y_NO[start:end])
    return y_NO


def outer_products(x_NI: Tensor, dy_NO: Tensor, ends_E: Tensor) -> Tensor:
    """Return the weights' gradient (E, I, O): x^T dy over each expert's rows, zero without rows."""
    if _has_kernel(x_NI):
        num_in, num_out = x_NI.shape[1], dy_NO.shape[1]
        x_NI, dy_NO = _padded(x_NI, dim=1), _padded(dy_NO, dim=1)
        return functional.grouped_mm(x_NI.T, dy_NO, offs=ends_E)[:, :num_in, :num_out]
    dw_EIO = x_NI.new_zeros(len(ends_E), x_NI.shape[1], dy_NO.shape[1])
    for expert, (start, end) in enumerate(_groups(ends_E)):
        if start < end:
            torch.mm(x_NI[start:end].T, dy_NO[start:end], out=dw_EIO[expert])
    return dw_EIO


def _has_kernel(x: Tensor) -> bool:
    """Return True where `grouped_mm` is a kernel, which also spares a wait for the device.

    On the CPU it is a loop itself, no faster than the one here.
    """
    return x.is_cuda and x.dtype == torch.bfloat16 and torch.cuda.get_device_capability()[0] >= 8


def _groups(ends_E: Tensor) -> list[tuple[int, int]]:
    ends = ends_E.tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _aligned(x_NI: Tensor, weight_EIO: Tensor) -> tuple[Tensor, Tensor, int]:
    """Pad the inner and outer dimension with zeros, so that rows start at ALIGNMENT_BYTES."""
    num_out = weight_EIO.shape[2]
    return _padded(x_NI, dim=1), _padded(_padded(weight_EIO, dim=1), dim=2), num_out


def _padded(tensor: Tensor, *, dim: int) -> Tensor:
    missing = -tensor.shape[dim] % (ALIGNMENT_BYTES // tensor.element_size())
    if missing == 0:
        return tensor
    after = tensor.dim() - 1 - dim
    return functional.pad(tensor, [0, 0] * after + [0, missing])
