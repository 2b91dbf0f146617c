"""Which linear layers a recipe's LoRA targets mean."""

from __future__ import annotations

import re

from peft import LoraConfig
from torch import nn

from posttrain.errors import RecipeError
from posttrain.recipe.schema import Lora, LoraTarget

TARGET_PATTERNS: dict[LoraTarget, str] = {
    "attention": r".*\.self_attn\.(q|k|v|o)_proj",
    "mlp": r".*\.(mlp|feed_forward)\.(gate|up|down)_proj",
    "shared_expert": r".*\.feed_forward\.shared_expert\.(gate|up|down)_proj",
    "router": r".*\.feed_forward\.router",
}
"""Full-match patterns over module names. Vision towers never match: their attention is not called
self_attn.q_proj under `language_model`, and LoRA on them is not offered."""

FEED_FORWARD: tuple[LoraTarget, ...] = ("mlp", "shared_expert")
"""The same weights in dense and in mixture layers, so a model may well have only one of them."""


def _layers_of(target: LoraTarget, layers: list[str]) -> list[str]:
    return [name for name in layers if re.fullmatch(TARGET_PATTERNS[target], name)]


def lora_config(spec: Lora, model: nn.Module) -> LoraConfig:
    """Translate the recipe's LoRA section into PEFT's.

    Raises RecipeError when a target is in no layer of the model, except for one of FEED_FORWARD
    where the other, also asked for, is.
    """
    linear = [
        name
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and "vision" not in name
    ]
    hits = {target: _layers_of(target, linear) for target in spec.targets}
    missing = [target for target, names in hits.items() if not names]
    if any(hits.get(target) for target in FEED_FORWARD):
        missing = [target for target in missing if target not in FEED_FORWARD]
    if missing:
        offered = [target for target in TARGET_PATTERNS if _layers_of(target, linear)]
        raise RecipeError(
            f"model.lora.targets: {', '.join(missing)} matches no layer of {type(model).__name__}",
            hint=f"choose among {', '.join(offered)}",
        )
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # pyright: ignore[reportArgumentType] any number scales
        lora_dropout=spec.dropout,
        target_modules=sorted(name for names in hits.values() for name in names),
        bias="none",
        task_type="CAUSAL_LM",
    )
