"""Quantised frozen weights, dequantised where they are used and not kept in full.

Two formats. fp8: e4m3 with one scale per output channel (and expert). nf4: four bits with one scale
per block of 64 along the input; its 16 levels, QLoRA's (Dettmers et al. 2023, appendix E), are the
quantiles of a normal distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from posttrain.models.checkpoint import is_text, text_name
from posttrain.models.experts import GroupedExperts
from posttrain.models.lora import target_of
from posttrain.models.sharded import full_tensor
from posttrain.recipe.models import Frozen

Format = Literal["fp8", "nf4"]
FP8_MAX = 448.0
"""The largest finite value of e4m3."""
BLOCK = 64
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


class QuantizedWeight(nn.Module):
    """A quantised weight of shape (..., in, out) that is dequantised to `dtype`.

    A leading dimension holds experts, each quantised on its own. Codes and scales are frozen
    parameters, so FSDP shards them. Codes are uint8 in torch, too: mixed precision would cast
    floating-point ones, and gloo knows no float8.
    """

    codes: Tensor
    scale: Tensor

    def __init__(self, shape: torch.Size, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape = shape
        self.dtype = dtype

    def _keep(self, codes: Tensor, scale: Tensor) -> None:
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

    @property
    def device(self) -> torch.device:
        """Return the device that holds it."""
        return self.scale.device

    def expert(self, index: int) -> Tensor:
        """Dequantise one expert's weight (in, out)."""
        return self._dequantize(self.codes[index], self.scale[index])

    def dense(self) -> Tensor:
        """Dequantise the whole weight (..., in, out), one expert at a time.

        Thus the temporary memory, up to 11 bytes a weight, is needed for one expert only.
        """
        codes, scale = full_tensor(self.codes), full_tensor(self.scale)
        if len(self.shape) == 2:
            return self._dequantize(codes, scale)
        dense = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        for index in range(len(dense)):
            dense[index] = self._dequantize(codes[index], scale[index])
        return dense

    def _dequantize(self, codes: Tensor, scale: Tensor) -> Tensor:
        raise NotImplementedError


class Fp8(QuantizedWeight):
    """One byte a weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape, weight.dtype)
        largest = weight.abs().amax(dim=-2, keepdim=True).float()
        scale = (largest / FP8_MAX).clamp_min(torch.finfo(torch.float32).tiny).to(weight.dtype)
        codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device)
        for part, source, by in _each(codes, weight, scale):
            part.copy_((source.float() / by.float()).clamp_(-FP8_MAX, FP8_MAX))
        self._keep(codes.view(torch.uint8), scale)

    def _dequantize(self, codes: Tensor, scale: Tensor) -> Tensor:
        return codes.view(torch.float8_e4m3fn).to(self.dtype) * scale.to(self.dtype)


class Nf4(QuantizedWeight):
    """4.25 bits a weight; the input dimension must be a multiple of BLOCK."""

    levels: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape, weight.dtype)
        *lead, fan_in, fan_out = weight.shape
        if fan_in % BLOCK:
            raise ValueError(
                f"nf4 quantises blocks of {BLOCK} inputs, and this weight has {fan_in}: use fp8"
            )
        device = torch.device("cpu") if weight.is_meta else weight.device
        levels = torch.tensor(NF4_LEVELS, device=device)
        middles = ((levels[1:] + levels[:-1]) / 2).to(weight.device)
        codes = torch.empty((*lead, fan_in // 2, fan_out), dtype=torch.uint8, device=weight.device)
        scale = torch.empty(
            (*lead, fan_in // BLOCK, 1, fan_out), dtype=torch.bfloat16, device=weight.device
        )
        for part, by, source in _each(codes, scale, weight):
            blocks = source.float().view(-1, BLOCK, fan_out)
            by.copy_(blocks.abs().amax(dim=1, keepdim=True))
            unit = blocks / by.float().clamp_min(torch.finfo(torch.bfloat16).tiny)
            level = (
                torch.bucketize(unit.contiguous(), middles).to(torch.uint8).view(fan_in, fan_out)
            )
            part.copy_(level[0::2] | (level[1::2] << 4))
        self._keep(codes, scale)
        self.register_buffer("levels", levels.to(weight.dtype), persistent=False)

    def _dequantize(self, codes: Tensor, scale: Tensor) -> Tensor:
        *lead, half, fan_out = codes.shape
        pairs = torch.stack((codes & 15, codes >> 4), dim=-2)
        values = self.levels.to(codes.device)[pairs.long()].view(
            *lead, 2 * half // BLOCK, BLOCK, fan_out
        )
        return (values * scale.to(self.dtype)).view(*lead, 2 * half, fan_out)


FORMATS: dict[Format, Callable[[Tensor], QuantizedWeight]] = {"fp8": Fp8, "nf4": Nf4}


def _each(*tensors: Tensor) -> Any:
    """Iterate over the experts of several tensors together, so that little is in fp32 at once."""
    return zip(*tensors, strict=True) if tensors[0].dim() > 2 else [tensors]


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with a quantised weight."""

    def __init__(self, linear: nn.Linear, format: Format) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.quantized = FORMATS[format](linear.weight.T)

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride] dequantised on demand
        """Dequantise the weight (out, in)."""
        return self.quantized.dense().T

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., in) -> (..., out)."""
        return cast(Tensor, _QuantizedLinear.apply(x.to(self._compute_dtype(x)), self))

    def _compute_dtype(self, x: Tensor) -> torch.dtype:
        device = x.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _QuantizedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return functional.linear(x, layer.weight.to(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] @ ctx.layer.weight.to(grads[0].dtype), None


def format_of(weight_name: str, frozen: Frozen | None) -> Format | None:
    """Return the format of a checkpoint's weight under `frozen`, None if it is not quantised.

    Linear layers are those of attention, shared experts and dense layers. The router is small and
    sensitive, and stays in full precision.
    """
    module, _, leaf = weight_name.rpartition(".")
    if frozen is None or leaf == "bias" or not is_text(weight_name):
        return None
    target = target_of(text_name(module))
    if target == "experts":
        return frozen.experts
    return frozen.linears if target in ("attention", "mlp", "shared_expert") else None


def fake_quantize(weight: Tensor, format: Format) -> Tensor:
    """Quantise and dequantise a weight: a linear layer's (out, in) or experts' (E, in, out)."""
    if weight.dim() == 2:
        return FORMATS[format](weight.T).dense().T
    return FORMATS[format](weight).dense()


def quantize_experts(experts: GroupedExperts, format: Format) -> None:
    """Quantise a layer's experts in place."""
    for name in ("gate_up_proj", "down_proj"):
        weight = getattr(experts, name)
        delattr(experts, name)
        setattr(experts, name, FORMATS[format](weight.detach()))
