"""What a training stage needs on each of its devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.memory.layers import FP32, Pass
from posttrain.memory.passes import PassBytes, pass_bytes
from posttrain.memory.shapes import Shapes
from posttrain.memory.weights import (
    VALUE_BYTES,
    layer_weight_bytes,
    outer_weight_bytes,
    trained_parameters,
    training_weight_bytes,
)
from posttrain.recipe.models import Model
from posttrain.recipe.schema import Recipe
from posttrain.recipe.trainer import trainer_fields

STATES: dict[str, float] = {"sgd": 0, "adafactor": 0, "lion_32bit": 1}
"""Copies of the trained weights that an optimizer keeps; Adam's two moments for all others, and a
quarter of those for the ones with 8bit in their name. Adafactor's rows and columns are little."""
GATHERED_LAYERS = 2
"""FSDP gathers the next layer while one is at work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingBytes:
    """Bytes on one device."""

    weights: int
    """Frozen and trained base weights, or this device's share of them."""
    gathered: int
    """FSDP: what it gathers of the other devices' shares."""
    adapters: int
    """In fp32; with them the reference's copy where there is one."""
    reference: int
    """Full training: the reference model."""
    gradients: int
    """And DDP's buckets, which hold them once more."""
    optimizer: int
    work: PassBytes

    @property
    def resident(self) -> int:
        """What is there between two steps."""
        return self.weights + self.adapters + self.reference + self.optimizer

    @property
    def peak(self) -> int:
        """The most there is in a step."""
        return self.resident + self.gathered + self.gradients + self.work.peak


def setting(stage: str, block: Mapping[str, Any], key: str) -> Any:
    """What TRL will see for a key: the recipe's value, else TRL's default."""
    return block[key] if key in block else trainer_fields(stage)[key].default


def pass_of(recipe: Recipe, stage: str) -> Pass:
    """The longest pass of a stage, with as many sequences as it takes at once.

    DPO passes the chosen and the rejected answers together. RL's are taken to fill
    engine.max_model_len. A mask is needed for packed sequences and where they may be padded, so not
    for one alone, except in RL, which pads to the longest of a whole generation batch.
    """
    section = getattr(recipe, stage)
    block: Mapping[str, Any] = section.trainer
    sequences: int = setting(stage, block, "per_device_train_batch_size")
    limit = recipe.engine.max_model_len
    length = limit if stage == "rl" else setting(stage, block, "max_length") or limit
    is_packed = stage == "sft" and bool(setting(stage, block, "packing"))
    sequences *= 2 if stage == "dpo" else 1
    lora = recipe.model.lora
    return Pass(
        sequences=sequences,
        length=length,
        value=VALUE_BYTES[recipe.model.dtype],
        is_masked=stage == "rl" or sequences > 1 or is_packed,
        rank=lora.rank if lora else 0,
        targets=lora.targets if lora else (),
        is_full=lora is None,
        frozen=recipe.model.frozen,
    )


def training_bytes(shapes: Shapes, recipe: Recipe, stage: str) -> TrainingBytes:
    """Count a training stage."""
    model, launch = recipe.model, recipe.launch
    block: Mapping[str, Any] = getattr(recipe, stage).trainer
    shards = launch.num_processes if launch.strategy == "fsdp" else 1
    trained = trained_parameters(shapes, model)
    value = FP32 if model.lora is not None else VALUE_BYTES[model.dtype]
    has_reference = stage == "dpo" or (stage == "rl" and setting(stage, block, "beta") > 0)
    copies = 2 if launch.num_processes > 1 and shards == 1 else 1
    weights = training_weight_bytes(shapes, model)
    states = _state_copies(str(block.get("optim", "adamw"))) * value * trained
    is_checkpointed = bool(block.get("gradient_checkpointing", True))
    return TrainingBytes(
        weights=weights // shards,
        gathered=_gathered(shapes, model) if shards > 1 else 0,
        adapters=(1 + has_reference) * FP32 * trained // shards if model.lora else 0,
        reference=weights // shards if has_reference and model.lora is None else 0,
        gradients=copies * value * trained // shards,
        optimizer=int(states / shards),
        work=pass_bytes(shapes, pass_of(recipe, stage), is_checkpointed=is_checkpointed),
    )


def _state_copies(optim: str) -> float:
    return STATES.get(optim, 0.5 if "8bit" in optim else 2)


def _gathered(shapes: Shapes, model: Model) -> int:
    """Two neighbouring layers, and what lies outside of layers, which stays gathered in a step."""
    value = VALUE_BYTES[model.dtype]
    each = [
        layer_weight_bytes(shapes, layer, model.frozen, value) for layer in range(shapes.num_layers)
    ]
    neighbours = [sum(each[at : at + GATHERED_LAYERS]) for at in range(len(each))]
    return max(neighbours) + outer_weight_bytes(shapes, value)
