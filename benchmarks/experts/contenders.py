"""Six ways to train LoRA on a Llama 4 mixture of experts, on the same shapes and base weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import Llama4ForCausalLM, Llama4TextConfig
from transformers.models.llama4.modeling_llama4 import (
    Llama4TextExperts,
    Llama4TextMLP,
    Llama4TextMoe,
)
from transformers.quantizers.base import SequentialLlama4TextExperts

from posttrain.models.experts import use_grouped_experts
from posttrain.models.lora import CUSTOM_MODULES

ALPHA_OVER_RANK = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertWork:
    """Shapes of a model and its batch.

    Without layers it is a single mixture layer, whose loss is a fixed linear function of its
    output; with layers it is a whole language model.
    """

    num_experts: int
    hidden_size: int
    intermediate_size: int
    rank: int
    num_tokens: int
    num_layers: int = 0
    vocab_size: int = 1024
    sequence_length: int = 256
    dtype: torch.dtype = torch.float32

    @property
    def config(self) -> Llama4TextConfig:
        """Llama 4 configuration with Scout's proportions, every layer a mixture."""
        return Llama4TextConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            intermediate_size_mlp=self.intermediate_size,
            num_hidden_layers=max(1, self.num_layers),
            num_attention_heads=max(1, self.hidden_size // 64),
            num_key_value_heads=max(1, self.hidden_size // 256),
            head_dim=64,
            num_local_experts=self.num_experts,
            num_experts_per_tok=1,
            interleave_moe_layer_step=1,
            pad_token_id=0,
        )


class OneLayer(nn.Module):
    """A single mixture layer."""

    def __init__(self, config: Llama4TextConfig) -> None:
        super().__init__()
        self.feed_forward = Llama4TextMoe(config)

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """Return the layer's output (N, H)."""
        return self.feed_forward(hidden_NH)[0]


def base_model(work: ExpertWork, device: str) -> nn.Module:
    """Build the frozen model of `work` with random weights, the same in every call."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        model = Llama4ForCausalLM(work.config) if work.num_layers else OneLayer(work.config)
        for module in model.modules():
            if isinstance(module, Llama4TextMoe):
                for weight in module.parameters():
                    nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    cast(nn.Module, model).to(work.dtype)
    return model.requires_grad_(False)


def _adapted(
    model: nn.Module,
    work: ExpertWork,
    *,
    modules: str | list[str],
    parameters: list[str] | None = None,
    own_layers: bool = False,
) -> PeftModel:
    config = LoraConfig(
        r=work.rank,
        lora_alpha=round(ALPHA_OVER_RANK * work.rank),
        target_modules=modules,
        target_parameters=parameters,
    )
    if own_layers:
        config._register_custom_module(CUSTOM_MODULES)
    return get_peft_model(cast(Any, model), config)


REST = r".*\.self_attn\.(q|k|v|o)_proj|.*\.shared_expert\.(gate|up|down)_proj"
"""Modules besides the routed experts that every contender but `attention only` adapts."""


def _rest(work: ExpertWork) -> str:
    return REST if work.num_layers else ""


def stock(model: nn.Module, work: ExpertWork) -> nn.Module:
    """Adapt transformers' dense experts through PEFT's `target_parameters`, as shipped."""
    names = [f"feed_forward.experts.{name}" for name in ("gate_up_proj", "down_proj")]
    return _adapted(model, work, modules=_rest(work) or [], parameters=names)


def attention_only(model: nn.Module, work: ExpertWork) -> nn.Module:
    """Freeze transformers' dense experts; adapt attention alone."""
    if not work.num_layers:
        return model
    return _adapted(model, work, modules=r".*\.self_attn\.(q|k|v|o)_proj")


def linearised(model: nn.Module, work: ExpertWork) -> nn.Module:
    """Make each expert an MLP of linear layers; all tokens go through each, as in axolotl."""
    for moe in _moes(model):
        experts = SequentialLlama4TextExperts(work.config)
        for index, mlp in enumerate(experts):
            _fill(cast(Llama4TextMLP, mlp), moe.experts, index)
        moe.experts = cast(Any, experts.requires_grad_(False))
    modules = r".*\.experts\.\d+\.(gate|up|down)_proj"
    return _adapted(model, work, modules=f"{_rest(work)}|{modules}")


def loop(model: nn.Module, work: ExpertWork) -> nn.Module:
    """Loop over the experts, each on its routed tokens, with plain autograd, as in torchtune."""
    adapted = _adapted(model, work, modules=_rest(work)) if work.num_layers else model
    for moe in _moes(adapted):
        moe.experts = cast(Any, LoopExperts(moe.experts, work.rank))
        moe.forward = _loop_moe.__get__(moe)
    return adapted


class LoopExperts(nn.Module):
    """Routed experts with a low-rank pair each."""

    def __init__(self, base: Llama4TextExperts, rank: int) -> None:
        super().__init__()
        self.base = base
        E, H, I2 = base.gate_up_proj.shape
        device = base.gate_up_proj.device
        self.A1 = nn.Parameter(torch.randn(E, H, rank, device=device) * H**-0.5)
        self.B1 = nn.Parameter(torch.zeros(E, rank, I2, device=device))
        self.A2 = nn.Parameter(torch.randn(E, I2 // 2, rank, device=device) * (I2 // 2) ** -0.5)
        self.B2 = nn.Parameter(torch.zeros(E, rank, H, device=device))

    def forward(self, rows_NH: Tensor, counts: list[int]) -> Tensor:
        """Run each expert on its rows."""
        outputs: list[Tensor] = []
        for e, x in enumerate(rows_NH.split(counts)):
            gate_up = x @ self.base.gate_up_proj[e] + _low_rank(x, self.A1[e], self.B1[e])
            gate, up = gate_up.chunk(2, -1)
            h = up * functional.silu(gate)
            outputs.append(h @ self.base.down_proj[e] + _low_rank(h, self.A2[e], self.B2[e]))
        return torch.cat(outputs)


def _low_rank(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return ALPHA_OVER_RANK * ((x @ A.to(x.dtype)) @ B.to(x.dtype))


def _loop_moe(moe: Llama4TextMoe, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    hidden_NH = hidden_states.reshape(-1, moe.hidden_dim)
    scores_NE, logits_NE = moe.router(hidden_NH)
    expert_N = logits_NE.argmax(-1)
    order_N = expert_N.argsort(stable=True)
    counts = expert_N.bincount(minlength=moe.num_experts).tolist()
    rows_NH = (hidden_NH * scores_NE.gather(1, expert_N[:, None]))[order_N]
    routed_NH = cast(LoopExperts, moe.experts)(rows_NH, counts)
    out_NH = moe.shared_expert(hidden_NH)
    return out_NH.index_add(0, order_N, routed_NH.to(out_NH.dtype)), logits_NE


def ours(model: nn.Module, work: ExpertWork) -> nn.Module:
    """Use posttrain's grouped experts with their own adapters."""
    use_grouped_experts(model)
    modules = rf"{_rest(work)}|.*feed_forward\.experts"
    return _adapted(model, work, modules=modules, own_layers=True)


def dense_floor(model: nn.Module, work: ExpertWork) -> nn.Module:
    """Replace the mixture by a dense MLP of an expert's size, with the same adapters."""
    for name, moe in [(n, m) for n, m in model.named_modules() if isinstance(m, Llama4TextMoe)]:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, DenseFeedForward(moe, work.config))
    return _adapted(model, work, modules=rf"{_rest(work)}|.*only_expert\.(gate|up|down)_proj")


class DenseFeedForward(nn.Module):
    """The shared expert and an MLP of a routed expert's size, both on every token."""

    def __init__(self, moe: Llama4TextMoe, config: Llama4TextConfig) -> None:
        super().__init__()
        self.shared_expert = moe.shared_expert
        self.only_expert = Llama4TextMLP(config).requires_grad_(False)
        _fill(self.only_expert, moe.experts, 0)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
        """Return output (N, H), and None in place of router logits."""
        hidden_NH = hidden_states.reshape(-1, hidden_states.shape[-1])
        return self.shared_expert(hidden_NH) + self.only_expert(hidden_NH), None


def _fill(mlp: Llama4TextMLP, experts: Llama4TextExperts, index: int) -> None:
    gate, up = experts.gate_up_proj[index].T.chunk(2)
    for linear, weight in (
        (mlp.gate_proj, gate),
        (mlp.up_proj, up),
        (mlp.down_proj, experts.down_proj[index].T),
    ):
        linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)


def _moes(model: nn.Module) -> list[Llama4TextMoe]:
    return [m for m in model.modules() if isinstance(m, Llama4TextMoe)]


OURS, STOCK, FLOOR = "posttrain", "transformers + PEFT", "dense floor"
LOOP = "loop over routed tokens"
CONTENDERS: Mapping[str, Callable[[nn.Module, ExpertWork], nn.Module]] = {
    STOCK: stock,
    "attention only, dense experts": attention_only,
    "linearised experts, all tokens": linearised,
    LOOP: loop,
    OURS: ours,
    FLOOR: dense_floor,
}


def contender(name: str, work: ExpertWork, device: str = "cpu") -> nn.Module:
    """Build a contender in training mode."""
    return CONTENDERS[name](copy.deepcopy(base_model(work, device)), work).train()
