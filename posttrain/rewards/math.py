"""Verifier `math`: the answer is mathematically equal to the reference, decided by math-verify.

math-verify takes `(1, 2)` and `{1, 2}` for equal, and rounds to six digits.
"""

from __future__ import annotations

from decimal import Decimal

from posttrain.records import Outcome, Prompt
from posttrain.rewards.answers import as_number, expected_got, final_answer
from posttrain.rewards.workers import WorkerFailure, ask

WALL_LIMIT = 3.0
"""Seconds after which a comparison is given up: some answers hang a computer algebra system."""
_CLOSE = Decimal("0.001")


def verify_math(prompt: Prompt, text: str) -> Outcome:
    """Pass when the text's final answer equals the reference; None where math-verify fails."""
    got, expected = as_number(final_answer(text)), as_number(final_answer(prompt.reference))
    if got is not None and expected is not None:
        if got == expected:
            return Outcome(passed=True, score=1.0, why="equal")
        # Two plain numbers that are clearly apart need no algebra; close ones may round alike.
        if abs(got - expected) > _CLOSE * max(abs(got), abs(expected)):
            why = expected_got(prompt.reference, final_answer(text))
            return Outcome(passed=False, score=0.0, why=why)
    request = {"do": "equal", "reference": final_answer(prompt.reference), "text": text}
    try:
        found = ask("math", request, seconds=WALL_LIMIT)
    except WorkerFailure as failure:
        return Outcome(passed=None, score=0.0, why=failure.why)
    if not found["reference"]:
        return Outcome(passed=None, score=0.0, why="the reference is no mathematical expression")
    if not found["answer"]:
        return Outcome(passed=False, score=0.0, why="no mathematical answer found")
    passed: bool = found["equal"]
    why = "equal" if passed else expected_got(found["reference"], found["answer"])
    return Outcome(passed=passed, score=float(passed), why=why)


def fits_math(prompt: Prompt) -> str | None:
    """The reference must hold something that math-verify can read."""
    reference = final_answer(prompt.reference)
    if not reference:
        return "the reference is empty"
    if as_number(reference) is not None:
        return None
    try:
        found = ask("math", {"do": "parse", "text": reference}, seconds=WALL_LIMIT)
    except WorkerFailure as failure:
        return f"the reference cannot be checked: {failure.why}"
    return None if found else "the reference is no mathematical expression"
