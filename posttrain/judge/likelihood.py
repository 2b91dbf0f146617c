"""Difficulty as surprise: the reference answer's negative log-likelihood under the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from posttrain.engines import Engine
from posttrain.errors import SetupError
from posttrain.judge.opinion import Opinion, too_long
from posttrain.models import prompt_ids
from posttrain.recipe.judges import LikelihoodJudge
from posttrain.records import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class _Question:
    """A sample's tokens."""

    prefix_ids: list[int]
    answer_ids: list[int]
    """Token ids of the answer and the end of the turn, (T,)."""


def surprise(spec: LikelihoodJudge, nll_with: float, nll_without: float | None) -> float:
    """Combine mean negative log-likelihoods with and without the question into nats per token.

    (1 - contrast) * nll_with + contrast * scale_nats * nll_with / nll_without. The ratio is the
    instruction-following difficulty of Li et al. 2023, "From Quantity to Quality" (arXiv
    2308.12032): near 0 the question gives the answer away, at 1 and above it does not help. It is
    multiplied by scale_nats, so that a ratio of 1 weighs as much as scale_nats of plain surprise.
    """
    if spec.contrast == 0.0:
        return nll_with
    assert nll_without is not None
    assert nll_without > 0.0
    ratio = nll_with / nll_without
    return (1.0 - spec.contrast) * nll_with + spec.contrast * spec.scale_nats * ratio


def ask_likelihood(
    samples: Sequence[Sample],
    spec: LikelihoodJudge,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_model_len: int | None,
) -> list[Opinion]:
    """Return the score 1 - exp(-surprise / scale_nats) of each sample, in order.

    The parts of an opinion: nll_with (nats per token of the answer and the end of its turn, given
    the question), nll_without (given an empty question; if contrast > 0), num_tokens.
    """
    empty_ids = prompt_ids(tokenizer, [{"role": "user", "content": ""}])
    opinions: dict[int, Opinion] = {}
    questions: dict[int, _Question] = {}
    for i, sample in enumerate(samples):
        asked = _in_tokens(sample, tokenizer, max_model_len)
        if isinstance(asked, Opinion):
            opinions[i] = asked
        else:
            questions[i] = asked
    with_question = _mean_nll(
        engine, {i: (q.prefix_ids, q.answer_ids) for i, q in questions.items()}
    )
    without = (
        _mean_nll(engine, {i: (empty_ids, q.answer_ids) for i, q in questions.items()})
        if spec.contrast > 0.0
        else {}
    )
    for i, question in questions.items():
        opinions[i] = _opinion(
            spec, with_question[i], without.get(i), num_tokens=len(question.answer_ids)
        )
    return [opinions[i] for i in range(len(samples))]


def _in_tokens(
    sample: Sample, tokenizer: PreTrainedTokenizerBase, max_model_len: int | None
) -> _Question | Opinion:
    end_of_turn = tokenizer.eos_token_id
    if end_of_turn is None:
        raise SetupError(
            "the judging model's tokenizer has no end-of-turn token",
            hint="set eos_token in its tokenizer_config.json",
        )
    assert isinstance(end_of_turn, int)
    answer_ids = tokenizer.encode(sample.messages[-1]["content"], add_special_tokens=False)
    if not answer_ids:
        return Opinion(score=None, reason="the answer is empty")
    question = _Question(
        prefix_ids=prompt_ids(tokenizer, sample.messages[:-1]),
        answer_ids=[*answer_ids, end_of_turn],
    )
    num_tokens = len(question.prefix_ids) + len(question.answer_ids)
    return too_long(num_tokens, max_model_len) or question


def _mean_nll(
    engine: Engine, sequences: Mapping[int, tuple[list[int], list[int]]]
) -> dict[int, float]:
    """Return mean negative log-likelihood per continuation token, in nats."""
    if not sequences:
        return {}
    scored = engine.score([p for p, _ in sequences.values()], [c for _, c in sequences.values()])
    return {
        i: -math.fsum(logprobs) / len(logprobs)
        for i, logprobs in zip(sequences, scored, strict=True)
    }


def _opinion(
    spec: LikelihoodJudge, nll_with: float, nll_without: float | None, *, num_tokens: int
) -> Opinion:
    parts = {"nll_with": nll_with, "num_tokens": float(num_tokens)}
    if nll_without is not None:
        parts["nll_without"] = nll_without
    if not all(map(math.isfinite, parts.values())):
        return Opinion(score=None, reason="the engine gave a log-probability that is not finite")
    if nll_without is not None and nll_without <= 0.0:
        reason = "the answer is certain without its question, so there is no ratio"
        return Opinion(score=None, reason=reason, parts=parts)
    # A probability that rounds to just above 1 must not give a score below 0.
    nats = max(0.0, surprise(spec, nll_with, nll_without))
    reason = f"{nll_with:.3f} nats per token over {num_tokens} tokens"
    if nll_without is not None:
        reason += f", {nll_without:.3f} without the question"
    return Opinion(score=1.0 - math.exp(-nats / spec.scale_nats), reason=reason, parts=parts)
