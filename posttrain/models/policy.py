"""Policies on disk and in memory: a plain checkpoint, or a checkpoint with an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Llama4ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from posttrain.errors import EnvironmentFault
from posttrain.models.experts import use_routed_experts
from posttrain.models.lora import lora_config
from posttrain.models.trl_shim import apply_trl_shim
from posttrain.recipe.schema import Model
from posttrain.records import Message

LLAMA4_TYPES = ("llama4", "llama4_text")


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyPath:
    """Where a policy lies: a Hugging Face checkpoint, with an adapter on it or without."""

    base: Path
    adapter: Path | None = None


def policy_in(folder: Path, *, base: Path) -> PolicyPath:
    """The policy a training stage wrote to `folder`: an adapter on `base`, or a whole model."""
    if (folder / "adapter_config.json").exists():
        return PolicyPath(base=base, adapter=folder)
    return PolicyPath(base=folder)


def load_tokenizer(base: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer, a missing pad token set to the end token.

    Raises EnvironmentFault where it has no chat template.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    if tokenizer.chat_template is None:
        raise EnvironmentFault(
            f"the tokenizer of {base} has no chat template",
            hint="post-training starts from a chat model, "
            "or add a chat_template.jinja to the folder",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """Tokens of a conversation with the opening of the assistant's turn, as the policy sees it."""
    conversation = cast(list[dict[str, str]], messages)
    ids = tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert isinstance(ids, list)
    return cast(list[int], ids)


def load_base(base: Path, *, dtype: str) -> PreTrainedModel:
    """Load a causal language model for text, its routed experts run on routed tokens only.

    A multimodal Llama 4 checkpoint is loaded as its language model alone.
    """
    apply_trl_shim()
    config = AutoConfig.from_pretrained(base)
    loader = Llama4ForCausalLM if config.model_type in LLAMA4_TYPES else AutoModelForCausalLM
    device = {"": torch.cuda.current_device()} if torch.cuda.is_available() else None
    model = loader.from_pretrained(
        base, dtype=getattr(torch, dtype), device_map=device, attn_implementation="sdpa"
    )
    use_routed_experts(model)
    return model


def load_policy(policy: PolicyPath, spec: Model, *, trainable: bool) -> PreTrainedModel | PeftModel:
    """Load a policy; with `trainable` its adapter, or without LoRA every weight, takes gradients.

    A policy without an adapter gets a fresh one, which starts as the identity. The load-balancing
    loss is off while the router is frozen: it could only push on what feeds the router.
    """
    model = load_base(policy.base, dtype=spec.dtype)
    text_config = model.config.get_text_config()
    router_trains = spec.lora is None or "router" in spec.lora.targets
    if hasattr(text_config, "router_aux_loss_coef") and not (trainable and router_trains):
        text_config.router_aux_loss_coef = 0.0
    if policy.adapter is not None:
        return PeftModel.from_pretrained(model, policy.adapter, is_trainable=trainable)
    if trainable and spec.lora is not None:
        return get_peft_model(model, lora_config(spec.lora, model))
    return model
