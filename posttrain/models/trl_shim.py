"""Patches without which TRL 1.16 cannot train Llama 4, or trains on the CPU at twice the cost.

TRL's fused language-model head reads a model's `base_model`, and its auxiliary loss `num_experts`
of the text config. Llama 4's `base_model_prefix` names no attribute, so its `base_model` is the
model itself, and it calls the other `num_local_experts`. `base_model_prefix` stays: weight loading
uses it. tests/test_upstream.py pins the names and fails once TRL needs a patch no more.
"""

from __future__ import annotations

import torch
from transformers import Llama4ForCausalLM, Llama4ForConditionalGeneration, Llama4TextConfig


def apply_trl_shim() -> None:
    """Give Llama 4's classes the three attributes TRL reads; applying it twice changes nothing."""
    shim = (
        (Llama4ForCausalLM, "base_model", lambda self: self.model),
        (Llama4ForConditionalGeneration, "base_model", lambda self: self.language_model.model),
        (Llama4TextConfig, "num_experts", lambda self: self.num_local_experts),
    )
    for owner, name, read in shim:
        setattr(owner, name, property(read))


def score_only_labels_on_cpu() -> None:
    """Make TRL's fused head skip positions without a label on the CPU, as it does on CUDA.

    Without Triton TRL projects every position, which for short answers and a large vocabulary is
    half of the cost of a step. Log-probabilities and gradients stay the same. Applying it twice
    changes nothing.
    """
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    def skips_unlabelled(device: torch.device) -> bool:
        return device.type == "cpu" or chunked_logprob._use_triton(device)

    utils._use_triton = skips_unlabelled
