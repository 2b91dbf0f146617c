"""LoRA layers for Llama 4's routed experts and router, which PEFT has none for.

PEFT reaches fused experts through `target_parameters`, which builds W + BA for all experts in each
forward pass. Here every expert has its own A and B, and the low-rank product runs on the routed
rows alone: x A_e B_e beside x W_e. PEFT finds these layers as custom modules, so it adds, switches,
saves, loads, merges and copies their adapters like any others.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, cast

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from transformers.models.llama4.modeling_llama4 import Llama4Router

from posttrain.models.experts import GroupedExperts
from posttrain.models.grouped import grouped_linear

Projection = Literal["gate_up_proj", "down_proj"]
PROJECTIONS: tuple[Projection, ...] = ("gate_up_proj", "down_proj")


class ExpertFactors(nn.Module):
    """Factor A (E, in, r) or B (E, r, out) of an adapter, for each of the experts' two weights.

    Gate and up share A, since one product computes both.
    """

    def __init__(self, gate_up_proj: Tensor, down_proj: Tensor) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(gate_up_proj)
        self.down_proj = nn.Parameter(down_proj)


class LoraExperts(nn.Module, LoraLayer):
    """`GroupedExperts` with adapters."""

    def __init__(
        self,
        base_layer: GroupedExperts,
        adapter_name: str,
        *,
        config: LoraConfig,
        r: int,
        lora_alpha: int,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        LoraLayer.__init__(self, base_layer, **kwargs)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha, config)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        experts = cast(GroupedExperts, module)
        return experts.hidden_size, experts.hidden_size

    def update_layer(
        self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any
    ) -> None:
        """Add an adapter that starts as the identity.

        Raises ValueError for a rank below one and for variants of LoRA that are not supported.
        """
        if r < 1:
            raise ValueError(f"r must be at least 1 and is {r}")
        unsupported = [name for name in ("use_dora", "lora_bias") if getattr(config, name)]
        if unsupported or config.init_lora_weights is not True:
            raise ValueError(
                "LoRA on routed experts does not support "
                + (", ".join(unsupported) or f"init_lora_weights={config.init_lora_weights!r}")
            )
        experts = self.experts
        shapes = {name: getattr(experts, name).shape for name in PROJECTIONS}
        self.r[adapter_name] = r
        self.lora_alpha[adapter_name] = lora_alpha
        self.use_rslora[adapter_name] = config.use_rslora
        self.use_dora[adapter_name] = False
        self.lora_bias[adapter_name] = False
        self.scaling[adapter_name] = lora_alpha / (math.sqrt(r) if config.use_rslora else r)
        self.lora_dropout[adapter_name] = nn.Dropout(config.lora_dropout)
        with torch.device(experts.gate_up_proj.device):
            self.lora_A[adapter_name] = ExpertFactors(
                **{name: _uniform(E, fan_in, r) for name, (E, fan_in, _) in shapes.items()}
            )
            self.lora_B[adapter_name] = ExpertFactors(
                **{name: torch.zeros(E, r, fan_out) for name, (E, _, fan_out) in shapes.items()}
            )
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @property
    def experts(self) -> GroupedExperts:
        """Return the adapted layer."""
        return cast(GroupedExperts, self.get_base_layer())

    def forward(self, rows_NH: Tensor, ends_E: Tensor) -> Tensor:
        """Run each expert, with the active adapters, on its rows: (N, H) -> (N, H)."""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.experts(rows_NH, ends_E)
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.merged or not active:
            return self.experts(rows_NH, ends_E)
        return self.experts(
            rows_NH,
            ends_E,
            gate_up_deltas=[partial(self._delta, name, "gate_up_proj") for name in active],
            down_deltas=[partial(self._delta, name, "down_proj") for name in active],
        )

    def _delta(
        self, adapter_name: str, projection: Projection, rows_NI: Tensor, ends_E: Tensor
    ) -> Tensor:
        """Return scaling * x A B for the routed rows."""
        A, B = self.factors(adapter_name, projection)
        dropped_NI = self.lora_dropout[adapter_name](rows_NI)
        inner_NR = grouped_linear(dropped_NI, A, ends_E)
        return grouped_linear(inner_NR * self.scaling[adapter_name], B, ends_E)

    def factors(self, adapter_name: str, projection: Projection) -> tuple[Tensor, Tensor]:
        """Return an adapter's A (E, in, r) and B (E, r, out) for one of the experts' weights."""
        return (
            getattr(self.lora_A[adapter_name], projection),
            getattr(self.lora_B[adapter_name], projection),
        )

    def delta_weight(self, adapter_name: str, projection: Projection) -> Tensor:
        """Return what an adapter adds to a weight: scaling * A B, (E, in, out), in fp32."""
        A, B = self.factors(adapter_name, projection)
        return self.scaling[adapter_name] * torch.bmm(A.float(), B.float())

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the experts' weights; with `safe_merge` refuse results not finite."""
        for adapter_name in check_adapters_to_merge(self, adapter_names):
            for projection in PROJECTIONS:
                self._add(adapter_name, projection, sign=1, safe=safe_merge)
            self.merged_adapters.append(adapter_name)

    def unmerge(self) -> None:
        """Subtract the merged adapters again, exact up to rounding in the weights' dtype."""
        while self.merged_adapters:
            adapter_name = self.merged_adapters.pop()
            for projection in PROJECTIONS:
                self._add(adapter_name, projection, sign=-1, safe=False)

    def _add(self, adapter_name: str, projection: Projection, *, sign: int, safe: bool) -> None:
        weight = getattr(self.experts, projection)
        if not isinstance(weight, Tensor):
            raise ValueError(
                f"an adapter cannot be merged into quantised weights ({type(weight).__name__}); "
                "`posttrain merge` writes a merged checkpoint"
            )
        with torch.no_grad():
            delta = sign * self.delta_weight(adapter_name, projection)
            merged = (weight.float() + delta).to(weight.dtype)
            if safe and not merged.isfinite().all():
                raise ValueError(f"adapter {adapter_name!r} makes {projection} not finite")
            weight.copy_(merged)


def _uniform(num_experts: int, fan_in: int, r: int) -> Tensor:
    """Return A as PEFT initialises it: Kaiming-uniform, a = sqrt(5), so within 1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(num_experts, fan_in, r).uniform_(-bound, bound)


class LoraRouter(Linear):
    """`Llama4Router` with adapters on its logits.

    The router returns scores and logits, so PEFT's own layer for linear modules does not fit it.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return scores (N, E), zero for experts that were not chosen, and logits (N, E)."""
        router = cast(Llama4Router, self.get_base_layer())
        if self.disable_adapters and self.merged:
            self.unmerge()
        _, logits = router(x)
        if not self.disable_adapters and not self.merged:
            for name in self.active_adapters:
                if name in self.lora_A:
                    rows = self.lora_dropout[name](
                        x.to(cast(Tensor, self.lora_A[name].weight).dtype)
                    )
                    delta = self.lora_B[name](self.lora_A[name](rows)) * self.scaling[name]
                    logits = logits + delta.to(logits.dtype)
        top, chosen = logits.topk(router.top_k, dim=1)
        scores = torch.zeros_like(logits).scatter(1, chosen, top.float().sigmoid().to(top.dtype))
        return scores, logits
