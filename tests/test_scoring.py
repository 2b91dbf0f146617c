from __future__ import annotations

from pathlib import Path

import pytest
import torch

from posttrain.models import scoring
from posttrain.models.loading import load_base

PREFIXES = [[1, 5, 9], [3, 3, 8, 100, 2], [7], [4, 4]]
CONTINUATIONS = [[17, 40], [60, 61, 62, 7, 7, 7], [9] * 20, [11, 12, 13]]


@pytest.mark.parametrize(
    ("at_once", "passes"),
    # Lengths are 5, 11, 21 and 5; two of 11 fit 22 tokens, and the one of 21 goes alone.
    [(1 << 28, 1), (300 * 22, 3), (1, 4)],
)
def test_sequence_logprobs_do_not_depend_on_the_batch_size(
    tiny_llama4: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, passes: int
) -> None:
    model = load_base(tiny_llama4, dtype="float32")
    monkeypatch.setattr(scoring, "MAX_LOGITS", at_once)
    monkeypatch.setattr(scoring, "MAX_FP32_TOKENS", 7)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    found = scoring.sequence_logprobs(model, PREFIXES, CONTINUATIONS)
    assert len(calls) == passes
    for prefix, continuation, scores in zip(PREFIXES, CONTINUATIONS, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prefix + continuation])).logits[0].log_softmax(-1)
        alone = [logits[len(prefix) - 1 + t, token].item() for t, token in enumerate(continuation)]
        assert scores == pytest.approx(alone, abs=1e-5)
