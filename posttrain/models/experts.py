"""Llama 4's mixture of experts at the cost of the experts used.

transformers runs every expert on every token and multiplies by zero what was not routed. Here the
tokens are sorted by expert and each expert sees its own: the same sum, a fraction of the work. A
model is switched by giving its modules these classes; weights and their names stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts, Llama4TextMoe

from posttrain.models.grouped import ExpertWeight, grouped_linear

SILU = (nn.SiLU, type(ACT2FN["silu"]))
"""Newer versions of transformers have a class of their own."""

Delta = Callable[[Tensor, Tensor], Tensor]
"""(rows (N, I), group ends (E,)) -> what an adapter adds to the rows' outputs (N, O)."""


class GroupedExperts(Llama4TextExperts):
    """Routed experts on rows sorted by expert."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] rows are sorted, not repeated
        self,
        rows_NH: Tensor,
        ends_E: Tensor,
        gate_up_deltas: Sequence[Delta] = (),
        down_deltas: Sequence[Delta] = (),
    ) -> Tensor:
        """Run each expert on its rows, (N, H) -> (N, H), plus what adapters add to its products."""
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
    """up * silu(gate), of which only the input is kept: the rest is cheap to compute again."""

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
    """A mixture layer that sorts its tokens by expert.

    `given_NK` fixes the experts of the next forward passes instead of the router's choice (see
    `replayed_routing`); `watch` is shown the choice and the logits of each pass.
    """

    given_NK: Tensor | None = None
    watch: Callable[[Tensor, Tensor], None] | None = None

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return output (N, H) and router logits (N, E) for batch x time = N tokens.

        The router module is called, so its logits can be recorded. A score scales its expert's
        input, as Llama 4 has it, and always comes from the live logits.
        """
        hidden_NH = hidden_states.reshape(-1, self.hidden_dim)
        _, logits_NE = self.router(hidden_NH)
        chosen_NK = self.choose(logits_NE)
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

    def choose(self, logits_NE: Tensor) -> Tensor:
        """The experts (N, top-k) of each token: those given, else those with the highest logits."""
        if self.given_NK is None:
            return logits_NE.topk(self.top_k, dim=1).indices
        given_NK = self.given_NK.to(logits_NE.device, torch.long)
        if given_NK.shape != (len(logits_NE), self.top_k):
            raise ValueError(
                f"replayed routing has shape {tuple(given_NK.shape)} and the tokens want "
                f"{(len(logits_NE), self.top_k)}"
            )
        return given_NK


def use_grouped_experts(model: nn.Module) -> int:
    """Switch every Llama 4 mixture layer of `model`; return how many there are."""
    layers = list(moe_layers(model).values())
    for moe in layers:
        moe.__class__ = RoutedMoe
        moe.experts.__class__ = GroupedExperts
    return len(layers)


def moe_layers(model: nn.Module) -> dict[str, RoutedMoe]:
    """The model's mixture layers by name, in order."""
    return {
        name: cast(RoutedMoe, module)
        for name, module in model.named_modules()
        if isinstance(module, Llama4TextMoe)
    }


@contextmanager
def replayed_routing(model: nn.Module, chosen: Mapping[str, Tensor]) -> Iterator[None]:
    """Let tokens go to the given experts, (N, top-k) by layer name, instead of the router's choice.

    Scores still come from the live router, so it keeps its gradient. With gradient checkpointing
    the backward pass must lie inside. Raises ValueError where a layer is missing or unknown.
    """
    layers = moe_layers(model)
    if layers.keys() != chosen.keys():
        odd = sorted(layers.keys() ^ chosen.keys())
        raise ValueError(f"replayed routing must name every mixture layer; differing: {odd[:4]}")
    try:
        for name, moe in layers.items():
            moe.given_NK = chosen[name]
        yield
    finally:
        for moe in layers.values():
            moe.given_NK = None
