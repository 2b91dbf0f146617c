"""Policies on disk and in memory: a plain checkpoint, or a checkpoint with an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from peft import PeftModel, get_peft_model
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from posttrain.errors import EnvironmentFault
from posttrain.models.loading import load_base
from posttrain.models.lora import load_adapter, lora_config, what_lora_hit
from posttrain.models.sharded import is_sharded_run, put_trained_on_host
from posttrain.progress import note
from posttrain.recipe.models import Frozen, LoraTarget, Model
from posttrain.records import Message


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyPath:
    """Where a policy lies: a Hugging Face checkpoint, with an adapter on it or without."""

    base: Path
    adapter: Path | None = None
    frozen: Frozen | None = None
    """How training keeps the base: the policy computes with what its packed weights unpack to."""


def policy_in(folder: Path, *, base: Path, frozen: Frozen | None = None) -> PolicyPath:
    """The policy a training stage wrote to `folder`: an adapter on `base`, or a whole model."""
    if (folder / "adapter_config.json").exists():
        return PolicyPath(base=base, adapter=folder, frozen=frozen)
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


def load_policy(policy: PolicyPath, spec: Model, *, trainable: bool) -> PreTrainedModel | PeftModel:
    """Load a policy; with `trainable` its adapter, or without LoRA every weight, takes gradients.

    A policy without an adapter gets a fresh one, which starts as the identity. A policy to train is
    left where FSDP wants it, if the stage was started with that. TRL's load-balancing loss is for
    full training: with a frozen router it could only push on what feeds the router.
    """
    sharded = trainable and is_sharded_run()
    model = load_base(policy.base, dtype=spec.dtype, frozen=spec.frozen, sharded=sharded)
    text_config = model.config.get_text_config()
    if hasattr(text_config, "router_aux_loss_coef") and not (trainable and spec.lora is None):
        text_config.router_aux_loss_coef = 0.0
    if policy.adapter is not None:
        model = load_adapter(model, policy.adapter, trainable=trainable)
    elif trainable and spec.lora is not None:
        model = get_peft_model(model, lora_config(spec.lora, model))
    if sharded:
        put_trained_on_host(model)
    if trainable and isinstance(model, PeftModel):
        note(f"LoRA on {_in_words(what_lora_hit(model))}")
    return model


def _in_words(hit: Mapping[LoraTarget, tuple[int, int]]) -> str:
    return ", ".join(
        f"{num_layers} x {target} ({num_weights:,} weights)"
        for target, (num_layers, num_weights) in hit.items()
    )
