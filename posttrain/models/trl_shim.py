"""The three properties without which TRL 1.16 cannot train Llama 4, in one place.

TRL's fused language-model head asks a model for `base_model` and its auxiliary loss asks the text
config for `num_experts`. Llama 4 declares a `base_model_prefix` that names no attribute, so
`base_model` is the model itself, and spells the other `num_local_experts`. `base_model_prefix`
stays as it is: weight loading uses it.
"""

from __future__ import annotations

from transformers import Llama4ForCausalLM, Llama4ForConditionalGeneration, Llama4TextConfig


def apply_trl_shim() -> None:
    """Give Llama 4's classes the three attributes TRL reads; applying twice changes nothing."""
    shim = (
        (Llama4ForCausalLM, "base_model", lambda self: self.model),
        (Llama4ForConditionalGeneration, "base_model", lambda self: self.language_model.model),
        (Llama4TextConfig, "num_experts", lambda self: self.num_local_experts),
    )
    for owner, name, read in shim:
        setattr(owner, name, property(read))
