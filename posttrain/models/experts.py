"""Llama 4's mixture of experts, computing only what was routed.

transformers runs every expert on every token and multiplies the rest by zero. Here tokens are
sorted by expert and each expert gets its own: the same sum for a fraction of the work. A model is
converted by assigning these classes to its modules; weights and their names stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts, Llama4TextMoe

from posttrain.models.grouped import ExpertWeight, grouped_linear

SILU = (nn.SiLU, type(ACT2FN["silu"]))
"""Newer versions of transformers have their own class."""

Delta = Callable[[Tensor, Tensor], Tensor]
"""Adapter: (rows (N, I), group ends (E,)) -> the change in the rows' outputs (N, O)."""


class GroupedExperts(Llama4TextExperts):
    """Routed experts on rows sorted by expert."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] rows are sorted, not repeated
        self,
        rows_NH: Tensor,
        ends_E: Tensor,
        gate_up_deltas: Sequence[Delta] = (),
        down_deltas: Sequence[Delta] = (),
    ) -> Tensor:
        """Run each expert on its rows, (N, H) -> (N, H), with the adapters' deltas added."""
        weight = cast("Tensor | ExpertWeight", self.gate_up_proj)
        gate_up_N2I = grouped_linear(rows_NH, weight, ends_E)
        for delta in gate_up_deltas:
            gate_up_N2I = gate_up_N2I + delta(rows_NH, ends_E)
        hidden_NI = self._activate(gate_up_N2I)
        out_NH = grouped_linear(hidden_NI, cast("Tensor | ExpertWeight", self.down_proj), ends_E)
        for delta in down_deltas:
            out_NH = out_NH + delta(hidden_NI, ends_E)
        return out_NH

    def _activate(self, gate_up_N2I: Tensor) -> Tensor:
        if isinstance(self.act_fn, SILU):
            return cast(Tensor, _SwiGLU.apply(gate_up_N2I))
        gate, up = gate_up_N2I.chunk(2, dim=-1)
        return up * self.act_fn(gate)


class _SwiGLU(torch.autograd.Function):
    """up * silu(gate); saves only its input for the backward pass and recomputes the rest."""

    @staticmethod
    def forward(ctx: Any, gate_up_N2I: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_N2I)
        gate, up = gate_up_N2I.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up_N2I,) = ctx.saved_tensors
        gate, up = gate_up_N2I.chunk(2, dim=-1)
        grad_N2I = torch.empty_like(gate_up_N2I)
        d_gate, d_up = grad_N2I.chunk(2, dim=-1)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        torch.mul(grads[0], silu, out=d_up)
        # d silu(g) / dg = s + g s (1 - s) = s + silu(g) (1 - s)
        slope = torch.addcmul(sigmoid, silu, 1 - sigmoid)
        torch.mul(grads[0] * up, slope, out=d_gate)
        return grad_N2I


class RoutedMoe(Llama4TextMoe):
    """A mixture-of-experts layer that sorts its tokens by expert."""

    watch: Callable[[Tensor, Tensor], None] | None = None
    """Called in each forward pass with the chosen experts (N, top-k) and the logits (N, E)."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return output (N, H) and router logits (N, E) for batch x time = N tokens.

        It calls the router module, so hooks can record the logits. As in Llama 4, a score scales
        its expert's input.
        """
        hidden_NH = hidden_states.reshape(-1, self.hidden_dim)
        _, logits_NE = self.router(hidden_NH)
        chosen_NK = logits_NE.topk(self.top_k, dim=1).indices
        scores_NK = logits_NE.gather(1, chosen_NK).float().sigmoid().to(hidden_NH.dtype)
        if self.watch is not None:
            self.watch(chosen_NK, logits_NE)
        expert_M, slot_M = chosen_NK.flatten().sort(stable=True)
        token_M = slot_M // self.top_k
        experts = torch.arange(self.num_experts, device=expert_M.device)
        ends_E = torch.searchsorted(expert_M, experts, right=True, out_int32=True)
        rows_MH = hidden_NH[token_M] * scores_NK.flatten()[slot_M, None]
        routed_MH = self.experts(rows_MH, ends_E)
        out_NH = self.shared_expert(hidden_NH)
        return out_NH.index_add(0, token_M, routed_MH.to(out_NH.dtype)), logits_NE


def use_grouped_experts(model: nn.Module) -> int:
    """Convert every Llama 4 MoE layer of `model` in place; return their number."""
    layers = list(moe_layers(model).values())
    for moe in layers:
        moe.__class__ = RoutedMoe
        moe.experts.__class__ = GroupedExperts
    return len(layers)


def moe_layers(model: nn.Module) -> dict[str, RoutedMoe]:
    """Return the model's MoE layers by name, in order."""
    return {
        name: cast(RoutedMoe, module)
        for name, module in model.named_modules()
        if isinstance(module, Llama4TextMoe)
    }
