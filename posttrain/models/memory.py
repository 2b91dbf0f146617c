"""Memory of each stage, from the model's shapes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    PreTrainedModel,
)

from posttrain.models.loading import LLAMA4_TYPES
from posttrain.models.lora import adaptable_layers, target_of
from posttrain.recipe.schema import EngineSpec, Lora, Recipe

BYTES = {"bfloat16": 2, "float32": 4}
MASTER_BYTES = 16
"""Per trained parameter: fp32 weight, gradient and the two moments of Adam."""


def model_shapes(base: Path) -> PreTrainedModel:
    """The model on the meta device: shapes, no weights."""
    config = AutoConfig.from_pretrained(base)
    if config.model_type in LLAMA4_TYPES:
        config = config.get_text_config()
    with torch.device("meta"):
        if config.model_type in LLAMA4_TYPES:
            assert isinstance(config, Llama4TextConfig)
            return Llama4ForCausalLM(config)
        return AutoModelForCausalLM.from_config(config)


def parameters_by_kind(model: nn.Module) -> dict[str, int]:
    """Count weights by kind, tied ones once.

    Kinds: embeddings, attention, mlp, shared_expert, experts, router, norms.
    """
    kinds: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        kind = _kind(name)
        kinds[kind] = kinds.get(kind, 0) + parameter.numel()
    return kinds


def _kind(name: str) -> str:
    module = name.rsplit(".", 1)[0]
    return target_of(module) or ("norms" if "norm" in name else "embeddings")


def adapter_parameters(model: nn.Module, lora: Lora) -> int:
    """Weights of the adapters a LoRA section puts on the model: rank x (in + out) per matrix."""
    layers = adaptable_layers(model)
    names = [name for target in lora.targets for name in layers.get(target, [])]
    matrices = (w for name in names for w in model.get_submodule(name).parameters() if w.dim() > 1)
    return sum(lora.rank * w.shape[:-2].numel() * (w.shape[-2] + w.shape[-1]) for w in matrices)


def kv_bytes_per_token(model: PreTrainedModel, dtype: str) -> int:
    """Bytes of keys and values that one token holds over all layers."""
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * BYTES[dtype]


def plan_memory(recipe: Recipe, base: Path | None = None) -> dict[str, Any]:
    """Bytes on one device for weights, training and the engine, by stage, without activations.

    Training holds the frozen weights and, per trained parameter, MASTER_BYTES. RL holds the
    engine's copy of the weights and its KV cache besides. Without a folder to read shapes from the
    answer is empty.
    """
    if base is None:
        local = recipe.model.base if isinstance(recipe.model.base, str) else ""
        base = Path(local).expanduser()
        if not (base / "config.json").is_file():
            return {}
    model = model_shapes(base)
    kinds = parameters_by_kind(model)
    total = sum(kinds.values())
    weights = total * BYTES[recipe.model.dtype]
    lora = recipe.model.lora
    trained = total if lora is None else adapter_parameters(model, lora)
    training = (weights if lora is not None else 0) + trained * MASTER_BYTES
    engine = weights + kv_cache_bytes(recipe.engine)
    return {
        "parameters": kinds,
        "num_parameters": total,
        "trained_parameters": trained,
        "kv_bytes_per_token": kv_bytes_per_token(model, recipe.model.dtype),
        "bytes": {
            "weights": weights,
            "training": training,
            "engine": engine,
            "rl": training + engine,
        },
    }


def kv_cache_bytes(engine: EngineSpec) -> int:
    """vLLM's KV cache as given in bytes, on the CPU; on CUDA it takes a share of the device."""
    return int(engine.kv_cache_gib * (1 << 30))
