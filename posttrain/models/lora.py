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
"""Full-match patterns over module names. Vision towers never match: their attention is not called self_attn.q_proj
under `language_model`, and LoRA on them is not offered."""


def lora_config(spec: Lora, model: nn.Module) -> LoraConfig:
    """Translate the recipe's LoRA section into PEFT's; raise RecipeError when a target is in no layer of the model.

    `mlp` and `shared_expert` stand for the same weights in dense and mixture layers, so one of them may be empty.
    """
    linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and "vision" not in name]
    hits = {t: [n for n in linear if re.fullmatch(TARGET_PATTERNS[t], n)] for t in spec.targets}
    dense = {"mlp", "shared_expert"}
    missing = [t for t in hits if not hits[t] and not (t in dense and any(hits.get(o) for o in dense))]  # type: ignore[call-overload]
    if missing:
        raise RecipeError(
            f"model.lora.targets: {', '.join(missing)} matches no layer of {type(model).__name__}",
            hint=f"choose among {', '.join(t for t, p in TARGET_PATTERNS.items() if any(re.fullmatch(p, n) for n in linear))}",
        )
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=sorted(name for names in hits.values() for name in names),
        bias="none",
        task_type="CAUSAL_LM",
    )
