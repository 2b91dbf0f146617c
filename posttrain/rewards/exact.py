"""Verifier `exact`: the answer is the reference, up to case, spacing, quotes and number format."""

from __future__ import annotations

from posttrain.records import Outcome, Prompt
from posttrain.rewards.answers import as_number, expected_got, final_answer, normalise


def verify_exact(prompt: Prompt, text: str) -> Outcome:
    """Pass when both answers are equal, as decimal numbers where both are plain numbers."""
    answer, reference = final_answer(text), final_answer(prompt.reference)
    got, expected = as_number(answer), as_number(reference)
    if got is not None and expected is not None:
        passed = got == expected
    else:
        passed = normalise(answer) == normalise(reference)
    why = "equal" if passed else expected_got(reference, answer)
    return Outcome(passed=passed, score=float(passed), why=why)


def fits_exact(prompt: Prompt) -> str | None:
    """Anything but an empty reference can be compared with."""
    return None if normalise(final_answer(prompt.reference)) else "the reference is empty"
