"""What TRL 1.16 needs in order to train Llama 4, and to train on the CPU without waste.

TRL's fused language-model head asks a model for `base_model` and its auxiliary loss asks the text
config for `num_experts`. Llama 4 declares a `base_model_prefix` that names no attribute, so
`base_model` is the model itself, and spells the other `num_local_experts`. `base_model_prefix`
stays as it is: weight loading uses it.
"""

from __future__ import annotations

import torch
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


def score_only_labels_on_cpu() -> None:
    """Let TRL's fused head project on the CPU, as on CUDA, only positions that have a label.

    TRL projects every position where it has no Triton, which for short answers and a large
    vocabulary is half of the cost of a step. Log-probabilities and gradients stay the same.
    Applying twice changes nothing.
    """
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    def leaves_out_unlabelled(device: torch.device) -> bool:
        return device.type == "cpu" or chunked_logprob._use_triton(device)

    utils._use_triton = leaves_out_unlabelled
