"""Log-probabilities of given tokens under a model in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

LOGITS_AT_ONCE = 1 << 28
"""Half a GB in bfloat16; one sequence alone may have more."""
TOKENS_AT_ONCE = 256
"""Of which logits are in fp32 at once."""


def sequence_logprobs(
    model: nn.Module, prefixes_N: Sequence[list[int]], continuations_N: Sequence[list[int]]
) -> list[list[float]]:
    """Log-probability (nats) of each continuation token, in right-padded forward passes.

    As many as keep the logits within LOGITS_AT_ONCE; the same for the same lengths, so processes
    that share a model and score the same sequences stay in step.
    """
    scores: list[list[float]] = []
    for part in _parts([len(p) + len(c) for p, c in zip(prefixes_N, continuations_N, strict=True)],
                       _vocab_size(model)):  # fmt: skip
        scores += _one_pass(model, prefixes_N[part], continuations_N[part])
    return scores


def _vocab_size(model: nn.Module) -> int:
    config: Any = model.config
    return config.get_text_config().vocab_size


def _parts(lengths_N: Sequence[int], vocab_size: int) -> Iterator[slice]:
    start = 0
    while start < len(lengths_N):
        end = start + 1
        while (
            end < len(lengths_N)
            and (end + 1 - start) * max(lengths_N[start : end + 1]) * vocab_size <= LOGITS_AT_ONCE
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
        scores.append(_of_targets(span_TV, target_T))
    return scores


def _of_targets(logits_TV: Tensor, target_T: Tensor) -> list[float]:
    found: list[float] = []
    for part_TV, part_T in zip(
        logits_TV.split(TOKENS_AT_ONCE), target_T.split(TOKENS_AT_ONCE), strict=True
    ):
        logprobs_TV = part_TV.float().log_softmax(-1)
        found += logprobs_TV.gather(1, part_T[:, None])[:, 0].tolist()
    return found
