"""LoRA by the recipe's targets: which layers they mean, PEFT's config, loading an adapter."""

from __future__ import annotations

import re
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn
from transformers.models.llama4.modeling_llama4 import Llama4Router, Llama4TextExperts

from posttrain.errors import RecipeError, SetupError
from posttrain.models.moe_lora import LoraExperts, LoraRouter
from posttrain.recipe.models import Lora, LoraTarget

TARGET_PATTERNS: dict[LoraTarget, str] = {
    "attention": r".*\.self_attn\.(q|k|v|o)_proj",
    "mlp": r".*\.(mlp|feed_forward)\.(gate|up|down)_proj",
    "shared_expert": r".*\.feed_forward\.shared_expert\.(gate|up|down)_proj",
    "experts": r".*\.feed_forward\.experts",
    "router": r".*\.feed_forward\.router",
}
"""Full-match patterns over module names. They match nothing in vision towers, whose attention is
not called self_attn.q_proj under `language_model`: LoRA on vision is not offered."""

FEED_FORWARD: tuple[LoraTarget, ...] = ("mlp", "shared_expert", "experts")
"""Targets of which a model may well lack some: dense layers have the first, MoE layers the rest."""

CUSTOM_MODULES: dict[type[nn.Module], type[nn.Module]] = {
    Llama4TextExperts: LoraExperts,
    Llama4Router: LoraRouter,
}
"""Layers of Llama 4 that PEFT has no LoRA layer for, with ours."""


def target_of(module_name: str) -> LoraTarget | None:
    """Return the LoRA target whose layers include a module, None if no target does."""
    for target, pattern in TARGET_PATTERNS.items():
        if re.fullmatch(pattern, module_name):
            return target
    return None


def adaptable_layers(model: nn.Module) -> dict[LoraTarget, list[str]]:
    """Return the names of the layers that each target means in this model; omit empty targets."""
    found: dict[LoraTarget, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Llama4TextExperts) and "vision" not in name:
            target = target_of(name)
            if target is not None:
                found.setdefault(target, []).append(name)
    return found


def lora_config(spec: Lora, model: nn.Module) -> LoraConfig:
    """Translate the recipe's LoRA section into PEFT's LoraConfig.

    Raises RecipeError for a target that matches no layer of the model. A target of FEED_FORWARD may
    match none, provided that another one the recipe asks for does.
    """
    offered = adaptable_layers(model)
    missing = [target for target in spec.targets if target not in offered]
    if any(target in offered for target in spec.targets if target in FEED_FORWARD):
        missing = [target for target in missing if target not in FEED_FORWARD]
    if missing:
        raise RecipeError(
            f"model.lora.targets: {', '.join(missing)} matches no layer of {type(model).__name__}",
            hint=f"choose among {', '.join(sorted(offered))}",
        )
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # pyright: ignore[reportArgumentType] any number scales
        lora_dropout=spec.dropout,
        target_modules=sorted(name for target in spec.targets for name in offered.get(target, [])),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return _with_custom_modules(config)


def load_adapter(model: nn.Module, adapter: Path, *, trainable: bool) -> PeftModel:
    """Put a saved adapter on its base; raise SetupError if it was trained on another base."""
    config = LoraConfig.from_pretrained(str(adapter))
    assert isinstance(config, LoraConfig)
    config.inference_mode = not trainable
    wrong: list[str] = []
    try:
        loaded = PeftModel.from_pretrained(
            model, adapter, is_trainable=trainable, config=_with_custom_modules(config)
        )
    except RuntimeError as error:
        wrong = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        if not wrong:
            raise
    else:
        # PEFT silently skips weights that it finds no layer for.
        saved = load_file(adapter / "adapter_model.safetensors").keys()
        wrong = sorted(f"it has {key}" for key in saved - get_peft_model_state_dict(loaded).keys())
        if not wrong:
            return loaded
    raise SetupError(
        f"{adapter} does not fit this base: {wrong[0]}",
        hint=f"it was trained on {config.base_model_name_or_path}",
    )


def _with_custom_modules(config: LoraConfig) -> LoraConfig:
    """Register our layers; PEFT does not save custom modules in adapter_config.json."""
    config._register_custom_module(CUSTOM_MODULES)
    return config


def adapted_layers(model: PeftModel) -> dict[LoraTarget, tuple[int, int]]:
    """Return, by target, the number of layers with an adapter and the weights of those adapters."""
    found: dict[LoraTarget, tuple[int, int]] = {}
    for name, module in model.get_base_model().named_modules():
        target = target_of(name)
        if isinstance(module, LoraLayer) and target is not None:
            assert isinstance(module, nn.Module)
            size = sum(p.numel() for n, p in module.named_parameters() if "lora_" in n)
            num_layers, num_weights = found.get(target, (0, 0))
            found[target] = (num_layers + 1, num_weights + size)
    return found
