"""Verifier `judge`: another model decides, in batches, between the engine's rounds.

The model, and the score from which an answer passes, are set once per process by `use_judge`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from posttrain.errors import RecipeError
from posttrain.records import Outcome, Prompt
from posttrain.rewards.verifier import Verifier, decided

Judge = Callable[[Sequence[tuple[Prompt, str]]], list[Outcome]]
"""Outcomes of (prompt, answer) pairs, in their order."""

REWARD_HACKS = {
    "grading": re.compile(
        r"\b(?:grade|rate|score|judge|mark|evaluate)\s+(?:this|it|me|my|the)\b"
        r"|\b(?:full|maximum|highest|top|perfect)\s+(?:marks?|score|rating|grade)\b"
        r"|\b(?:score|rating|grade|verdict)\s*[:=]\s*\W*\w",
        re.IGNORECASE,
    ),
    "orders to the judge": re.compile(
        r"\b(?:ignore|disregard|forget)\b.{0,40}\b(?:instructions?|rubric|above|previous)\b"
        r"|\byou are (?:now )?(?:a|an|the) (?:judge|grader|evaluator)\b"
        r"|<\|[^|>]{1,40}\|>|\[/?INST\]",
        re.IGNORECASE | re.DOTALL,
    ),
    "opener only": re.compile(
        r"\A\W*(?:thought process|let'?s (?:think|solve)(?: this)?(?: step by step)?|solution)?"
        r"\W*\Z",
        re.IGNORECASE,
    ),
}
_in_use: list[Judge] = []


@contextmanager
def use_judge(judge: Judge) -> Generator[None]:
    """Let verifier `judge` ask this judge inside the context."""
    _in_use.append(judge)
    try:
        yield
    finally:
        _in_use.pop()


def _verify(prompt: Prompt, text: str) -> Outcome:
    return _verify_batch([(prompt, text)])[0]


def _verify_batch(pairs: Sequence[tuple[Prompt, str]]) -> list[Outcome]:
    """Ask the judge, but fail answers that are nothing but an opener: those win over judges.

    Raises RecipeError where no judge is set.
    """
    if not _in_use:
        raise RecipeError(
            "verifier judge: no judge is set",
            hint="write answer_judge: {rubric: ...} in the recipe",
        )
    opener = REWARD_HACKS["opener only"]
    asked = [pair for pair in pairs if not opener.search(pair[1])]
    found = iter(_in_use[-1](asked) if asked else [])
    unseen = decided(False, "opener_only", "nothing but an opener")
    return [unseen if opener.search(text) else next(found) for _, text in pairs]


def _check(prompt: Prompt) -> str | None:
    return None if prompt.messages else "there is no question"


JUDGE = Verifier(
    name="judge",
    summary="what a model thinks of it",
    takes="none needed",
    verify=_verify,
    check=_check,
    verify_batch=_verify_batch,
    reference_from="nothing",
    is_open=True,
    reward_hacks=REWARD_HACKS,
    uses="answer_judge",
)
