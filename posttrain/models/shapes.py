"""A model's shapes from its configuration alone: weights by kind, what a token passes through."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from posttrain.models.loading import LLAMA4_TYPES
from posttrain.models.lora import adaptable_layers, target_of
from posttrain.recipe.schema import Lora

ROUTED = "experts"


def text_config(base: Path) -> PreTrainedConfig:
    """The language model's configuration of a checkpoint, multimodal or not."""
    config = AutoConfig.from_pretrained(base)
    return config.get_text_config() if config.model_type in LLAMA4_TYPES else config


def model_shapes(config: PreTrainedConfig) -> PreTrainedModel:
    """The model on the meta device: shapes, no weights."""
    with torch.device("meta"):
        if config.model_type in LLAMA4_TYPES:
            assert isinstance(config, Llama4TextConfig)
            return Llama4ForCausalLM(config)
        return AutoModelForCausalLM.from_config(config)


def parameters_by_kind(model: nn.Module) -> dict[str, int]:
    """Count weights by kind, tied ones once.

    Kinds: embeddings, lm_head, norms and those of LoRA's targets.
    """
    kinds: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        kind = kind_of(name)
        kinds[kind] = kinds.get(kind, 0) + parameter.numel()
    return kinds


def kind_of(weight_name: str) -> str:
    """The kind of a weight."""
    module = weight_name.rsplit(".", 1)[0]
    if module.endswith("lm_head"):
        return "lm_head"
    return target_of(module) or ("norms" if "norm" in weight_name else "embeddings")


def adapter_parameters(model: nn.Module, lora: Lora) -> dict[str, int]:
    """Weights of the adapters that a LoRA section asks for, by target: r (in + out) a matrix."""
    layers = adaptable_layers(model)
    return {
        target: sum(
            lora.rank * w.shape[:-2].numel() * (w.shape[-2] + w.shape[-1])
            for name in layers.get(target, [])
            for w in model.get_submodule(name).parameters()
            if w.dim() > 1
        )
        for target in lora.targets
    }


def active_parameters(model: PreTrainedModel) -> int:
    """Weights of matrices that one token is multiplied with: of the routed experts its own."""
    config = model.config.get_text_config()
    share = getattr(config, "num_experts_per_tok", 1) / getattr(config, "num_local_experts", 1)
    kinds = parameters_by_kind(model)
    head = kinds.get("lm_head") or config.vocab_size * config.hidden_size  # tied: counted once
    dense = sum(kinds.get(kind, 0) for kind in ("attention", "mlp", "shared_expert", "router"))
    return dense + head + round(share * kinds.get(ROUTED, 0))


def kv_bytes_per_token(config: PreTrainedConfig, bytes_per_value: int) -> int:
    """Bytes of keys and values that one token holds over all layers."""
    return (
        2
        * config.num_hidden_layers
        * config.num_key_value_heads
        * head_dim(config)
        * bytes_per_value
    )


def head_dim(config: PreTrainedConfig) -> int:
    """Width of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class FlopsPerToken:
    """Floating-point operations for one token, a multiply-add counted as two.

    Matrix products and attention's two products; norms, rotary and softmax are left out, as usual.
    """

    forward: float
    frozen: float
    """Forward and backward through a frozen base: no gradients of weights."""
    frozen_recomputed: float
    """The same with gradient checkpointing: the forward pass twice."""
    full: float
    """Forward and backward with every weight trained."""
    adapters: float
    """Forward and backward of the adapters, besides."""


def flops_per_token(
    model: PreTrainedModel, *, sequence_length: int, adapter_weights: int = 0
) -> FlopsPerToken:
    """Count as PaLM's appendix B does, the causal half of attention alone.

    A layer whose attention is chunked sees at most its chunk. `adapter_weights` are those that one
    token is multiplied with.
    """
    config = model.config.get_text_config()
    linear = 2.0 * active_parameters(model)
    width = config.num_attention_heads * head_dim(config)
    chunk = getattr(config, "attention_chunk_size", None) or sequence_length
    spans = [
        min(sequence_length, chunk) if rotary else sequence_length
        for rotary in getattr(config, "no_rope_layers", None) or [1] * config.num_hidden_layers
    ]
    attention = sum(4.0 * (span / 2) * width for span in spans)
    return FlopsPerToken(
        forward=linear + attention,
        frozen=2 * linear + 3 * attention,
        frozen_recomputed=3 * linear + 4 * attention,
        full=3 * (linear + attention),
        adapters=6.0 * adapter_weights,
    )
