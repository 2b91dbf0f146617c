"""Llama-family models: loading for training, LoRA, upcycling, merging, export."""

from posttrain.models.base_model import count_parameters, resolve_base
from posttrain.models.merge import live_tensors, merge, merged_tensors
from posttrain.models.policy import (
    PolicyPath,
    load_policy,
    load_tokenizer,
    policy_in,
    prompt_ids,
    save_policy,
)
from posttrain.models.scoring import sequence_logprobs
from posttrain.models.upcycle import upcycle

__all__ = [
    "PolicyPath",
    "count_parameters",
    "live_tensors",
    "load_policy",
    "load_tokenizer",
    "merge",
    "merged_tensors",
    "policy_in",
    "prompt_ids",
    "resolve_base",
    "save_policy",
    "sequence_logprobs",
    "upcycle",
]
