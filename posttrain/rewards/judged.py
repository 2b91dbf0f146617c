"""Verifier `judge`: another model decides, in batches, between the engine's rounds.

Which model, and from which score an answer passes, is set once per process by `use_judge`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

from posttrain.errors import RecipeError
from posttrain.records import Outcome, Prompt
from posttrain.rewards.watch import JUDGED, touches

Judge = Callable[[Sequence[tuple[Prompt, str]]], list[Outcome]]
"""Outcomes of (prompt, answer) pairs, in their order."""

_in_use: list[Judge] = []
_waiting: list[tuple[Prompt, str, Future[Outcome]]] = []


@contextmanager
def use_judge(judge: Judge) -> Generator[None]:
    """Inside, verifier `judge` asks this one."""
    _in_use.append(judge)
    try:
        yield
    finally:
        _in_use.pop()


def verify_judged(prompt: Prompt, text: str) -> Outcome:
    """Ask the judge about one answer; RecipeError where no judge is set."""
    return _decide([(prompt, text)])[0]


def submit_judged(prompt: Prompt, text: str) -> Future[Outcome]:
    """Leave an answer for the next `settle`."""
    outcome: Future[Outcome] = Future()
    _waiting.append((prompt, text, outcome))
    return outcome


def settle() -> None:
    """Ask the judge about every answer that waits, in one batch."""
    waiting = _waiting.copy()
    _waiting.clear()
    if not waiting:
        return
    found = _decide([(prompt, text) for prompt, text, _ in waiting])
    for (prompt, text, future), outcome in zip(waiting, found, strict=True):
        future.set_result(dataclasses.replace(outcome, touches=touches(prompt, text)))


def fits_judged(prompt: Prompt) -> str | None:
    """Any question will do; a reference is not looked at."""
    return None if prompt.messages else "there is no question"


def _decide(pairs: Sequence[tuple[Prompt, str]]) -> list[Outcome]:
    """An answer that is nothing but an opener fails unseen: such ones win over judges."""
    if not _in_use:
        raise RecipeError(
            "verifier judge: no judge is set",
            hint="write answer_judge: {rubric: ...} in the recipe",
        )
    asked = [pair for pair in pairs if not JUDGED["opener only"].search(pair[1])]
    found = iter(_in_use[-1](asked) if asked else [])
    unseen = Outcome(passed=False, score=0.0, why="nothing but an opener")
    return [unseen if JUDGED["opener only"].search(text) else next(found) for _, text in pairs]
