"""Routed experts on the tokens that are routed to them, in place of every expert on every token.

transformers' `Llama4TextMoe` repeats all tokens for all experts. With top-1 routing the outputs of
the experts that were not chosen are zero, so sorting the tokens by expert and running each expert
on its own gives the same sum.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe


def routed_moe_forward(
    moe: Llama4TextMoe, hidden_states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `Llama4TextMoe.forward` returns: output (N, H) and router logits (N, E).

    N = batch x time. Only for top-1 routing. The router module is called, so router logits can
    still be recorded.
    """
    hidden_NH = hidden_states.reshape(-1, moe.hidden_dim)
    scores_NE, logits_NE = moe.router(hidden_NH)
    expert_N = logits_NE.argmax(-1)
    routed_NH = hidden_NH * scores_NE.gather(1, expert_N[:, None])
    order_N = expert_N.argsort(stable=True)
    tokens_per_expert = expert_N.bincount(minlength=moe.num_experts).tolist()
    outputs: list[torch.Tensor] = []
    for expert, tokens_nH in enumerate(routed_NH[order_N].split(tokens_per_expert)):
        if len(tokens_nH) == 0:
            continue
        gate, up = (tokens_nH @ moe.experts.gate_up_proj[expert]).chunk(2, dim=-1)
        outputs.append((up * moe.experts.act_fn(gate)) @ moe.experts.down_proj[expert])
    out_NH = moe.shared_expert(hidden_NH)
    return out_NH.index_add(0, order_N, torch.cat(outputs).to(out_NH.dtype)), logits_NE


def use_routed_experts(model: nn.Module) -> int:
    """Switch every top-1 `Llama4TextMoe` in `model` to `routed_moe_forward`; return how many."""
    layers = [m for m in model.modules() if isinstance(m, Llama4TextMoe) and m.top_k == 1]
    for moe in layers:
        moe.forward = routed_moe_forward.__get__(moe)
    return len(layers)
