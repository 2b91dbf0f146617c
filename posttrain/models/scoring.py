"""Log-probabilities of given tokens under a model in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

MAX_LOGITS = 1 << 28
"""Logits of one forward pass: half a GB in bfloat16. A single sequence may have more."""
MAX_FP32_TOKENS = 256
"""Tokens whose logits are converted to fp32 at once."""


def sequence_logprobs(
    model: nn.Module, prefixes_N: Sequence[list[int]], continuations_N: Sequence[list[int]]
) -> list[list[float]]:
    """Return the log-probability (nats) of each continuation token after its prefix.

    Sequences are right-padded and batched up to MAX_LOGITS. Batches depend on the lengths alone, so
    processes that share a sharded model and score the same sequences stay in step.
    """
    lengths_N = [len(p) + len(c) for p, c in zip(prefixes_N, continuations_N, strict=True)]
    config: Any = model.config
    scores: list[list[float]] = []
    for batch in _batches(lengths_N, config.get_text_config().vocab_size):
        scores += _one_pass(model, prefixes_N[batch], continuations_N[batch])
    return scores


def _batches(lengths_N: Sequence[int], vocab_size: int) -> Iterator[slice]:
    start = 0
    while start < len(lengths_N):
        end = start + 1
        while (
            end < len(lengths_N)
            and (end + 1 - start) * max(lengths_N[start : end + 1]) * vocab_size <= MAX_LOGITS
        ):
            end += 1
        yield slice(start, end)
        start = end


def _one_pass(
    model: nn.Module, prefixes_N: Sequence[list[int]], continuations_N: Sequence[list[int]]
) -> list[list[float]]:
    rows = [p + c for p, c in zip(prefixes_N, continuations_N, strict=True)]
    width = max(map(len, rows))
    device = next(model.parameters()).device
    ids_NT = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    mask_NT = torch.tensor(
        [[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device
    )
    with torch.no_grad():
        logits_NTV = model(input_ids=ids_NT, attention_mask=mask_NT, use_cache=False).logits
    scores: list[list[float]] = []
    for logits_TV, prefix, continuation in zip(
        logits_NTV, prefixes_N, continuations_N, strict=True
    ):
        span_TV = logits_TV[len(prefix) - 1 : len(prefix) + len(continuation) - 1]
        target_T = torch.tensor(continuation, device=device, dtype=torch.long)
        scores.append(_target_logprobs(span_TV, target_T))
    return scores


def _target_logprobs(logits_TV: Tensor, target_T: Tensor) -> list[float]:
    found: list[float] = []
    for part_TV, part_T in zip(
        logits_TV.split(MAX_FP32_TOKENS), target_T.split(MAX_FP32_TOKENS), strict=True
    ):
        logprobs_TV = part_TV.float().log_softmax(-1)
        found += logprobs_TV.gather(1, part_T[:, None])[:, 0].tolist()
    return found
