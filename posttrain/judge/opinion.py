"""A judge's score of one sample, before it becomes a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Opinion:
    """A score with its reason; the score is None where the judge gives none.

    >>> Opinion(score=None, reason="the answer is empty").parts
    {}
    """

    score: float | None
    reason: str
    parts: Mapping[str, float] = field(default_factory=dict[str, float])


def too_long(num_tokens: int, max_model_len: int | None) -> Opinion | None:
    """Return an unscored opinion if a sequence does not fit the engine, else None.

    One token is kept free, because engines score a sequence by generating one token after it.
    """
    if max_model_len is None or num_tokens < max_model_len:
        return None
    reason = f"{num_tokens} tokens do not fit max_model_len {max_model_len}"
    return Opinion(score=None, reason=reason, parts={"num_tokens": float(num_tokens)})
