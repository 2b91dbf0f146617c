"""Verifier `exact`: the answer is the reference, up to case, spacing, quotes and number format."""

from __future__ import annotations

from posttrain.records import Outcome, Prompt
from posttrain.rewards.answers import (
    as_number,
    brief,
    expected_got,
    final_answer,
    locate_answer,
    normalise,
    western_digits,
)


def verify_exact(prompt: Prompt, text: str) -> Outcome:
    """Pass when both answers are equal, as decimal numbers where both are plain numbers."""
    answer, form = locate_answer(text)
    reference = final_answer(prompt.reference)
    got, expected = (as_number(western_digits(one)) for one in (answer, reference))
    if got is not None and expected is not None:
        passed = got == expected
    else:
        passed = normalise(answer) == normalise(reference)
    why = "equal" if passed else expected_got(reference, answer)
    read = f"{form}: {brief(answer)}"
    return Outcome(passed=passed, score=float(passed), why=why, extracted=read)


def fits_exact(prompt: Prompt) -> str | None:
    """Anything but an empty reference can be compared with."""
    return None if normalise(final_answer(prompt.reference)) else "the reference is empty"
