"""The kinds of a model's weights. Counting and bytes: posttrain.memory."""

from __future__ import annotations

from transformers import PreTrainedConfig

from posttrain.models.lora import target_of


def kind_of(weight_name: str) -> str:
    """The kind of a weight: one of LoRA's targets, norms, lm_head or embeddings."""
    module = weight_name.rsplit(".", 1)[0]
    if module.endswith("lm_head"):
        return "lm_head"
    return target_of(module) or ("norms" if "norm" in weight_name else "embeddings")


def head_dim(config: PreTrainedConfig) -> int:
    """Width of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
