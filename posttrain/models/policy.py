"""Policies on disk and in memory: a plain checkpoint, or a checkpoint with an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from accelerate import PartialState
from peft import PeftModel, get_peft_model
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from posttrain.errors import SetupError
from posttrain.models.loading import load_base
from posttrain.models.lora import adapted_layers, load_adapter, lora_config
from posttrain.models.sharded import full_state_dict, is_sharded_run, move_trainable_off_meta
from posttrain.progress import note
from posttrain.recipe.models import Frozen, Model
from posttrain.records import Message


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyPath:
    """Location of a policy: a Hugging Face checkpoint, with or without an adapter."""

    base: Path
    adapter: Path | None = None
    frozen: Frozen | None = None
    """Formats of the base in training; the policy computes with the dequantised weights."""


def policy_in(folder: Path, *, base: Path, frozen: Frozen | None = None) -> PolicyPath:
    """Return the policy that a training stage wrote to `folder`: an adapter, or a whole model."""
    if (folder / "adapter_config.json").exists():
        return PolicyPath(base=base, adapter=folder, frozen=frozen)
    return PolicyPath(base=folder)


def load_tokenizer(base: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer; where it has no pad token, the end token becomes it.

    Raises SetupError if it has no chat template.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    if tokenizer.chat_template is None:
        raise SetupError(
            f"the tokenizer of {base} has no chat template",
            hint="start from a chat model, or add a chat_template.jinja to the folder",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """Tokenize a conversation with the generation prompt, as the policy sees it."""
    conversation = cast(list[dict[str, str]], messages)
    ids = tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert isinstance(ids, list)
    return cast(list[int], ids)


def load_policy(policy: PolicyPath, spec: Model, *, trainable: bool) -> PreTrainedModel | PeftModel:
    """Load a policy; if `trainable`, its adapter (without LoRA, every weight) takes gradients.

    A policy without an adapter gets a new one, which starts as the identity. Under FSDP a policy to
    train stays on the host or the meta device until accelerate shards it. TRL's load-balancing loss
    is kept for full training only: with a frozen router it would act on the layers below instead.
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
        move_trainable_off_meta(model)
    if trainable and isinstance(model, PeftModel):
        adapted = ", ".join(
            f"{num_layers} {target} layers ({num_weights:,} weights)"
            for target, (num_layers, num_weights) in adapted_layers(model).items()
        )
        note(f"LoRA on {adapted}")
    return model


def save_policy(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """Write the trained adapter (never its frozen reference copy), or every weight, to `folder`.

    The main process writes. Every process must call it, since each may hold a shard; all return
    once everything is written.
    """
    has_adapter = isinstance(model, PeftModel)
    state = full_state_dict(model, lambda name: ".default." in name or not has_adapter)
    if PartialState().is_main_process:
        if has_adapter:
            model.save_pretrained(str(folder), state_dict=state, selected_adapters=["default"])
        else:
            model.save_pretrained(folder, state_dict=state)
    PartialState().wait_for_everyone()
