"""Verifier `exact`: the answer is the reference, up to case, spacing, quotes and number format."""

from __future__ import annotations

from posttrain.records import Outcome, Prompt
from posttrain.rewards.answers import (
    as_number,
    brief,
    expected_got,
    normalise,
    western_digits,
)
from posttrain.rewards.places import final_answer, locate_answer
from posttrain.rewards.verifier import Verifier, decided


def _verify(prompt: Prompt, text: str) -> Outcome:
    """Compare as decimal numbers where both answers are plain numbers, else as folded text."""
    answer, form = locate_answer(text)
    reference = final_answer(prompt.reference)
    got, expected = (as_number(western_digits(one)) for one in (answer, reference))
    if got is not None and expected is not None:
        passed = got == expected
    else:
        passed = normalise(answer) == normalise(reference)
    why = "equal" if passed else expected_got(reference, answer)
    return decided(passed, "wrong", why, extracted=f"{form}: {brief(answer)}")


def _check(prompt: Prompt) -> str | None:
    return None if normalise(final_answer(prompt.reference)) else "the reference is empty"


EXACT = Verifier(
    name="exact",
    summary="the same text or number",
    takes="the answer",
    verify=_verify,
    check=_check,
    read_reference=final_answer,
    is_scorable=True,
)
