"""Log-probabilities of given tokens under a model in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def sequence_logprobs(
    model: nn.Module, prefixes_N: Sequence[list[int]], continuations_N: Sequence[list[int]]
) -> list[list[float]]:
    """Log-probability (nats) of each continuation token, in one right-padded forward pass."""
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
        span_TV = (
            logits_TV[len(prefix) - 1 : len(prefix) + len(continuation) - 1].float().log_softmax(-1)
        )
        target = torch.tensor(continuation, device=device, dtype=torch.long)
        scores.append(span_TV.gather(1, target[:, None])[:, 0].tolist())
    return scores
