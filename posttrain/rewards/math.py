r"""Verifier `math`: the answer is mathematically equal to the reference.

Lists are taken apart here and their elements compared by math-verify, which alone would take
`(1, 2)` and `\{1, 2\}` for equal. Here brackets count where both sides have them: `(1, 2)`,
`[1, 2]`, `(1, 2]` and `\{1, 2\}` are four answers. `\{...\}` has no order, nor have two lists
without brackets; a list without brackets fits any brackets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from posttrain.records import Outcome, Prompt
from posttrain.rewards.answers import (
    as_number,
    brief,
    expected_got,
    final_answer,
    last_boxed_run,
    locate_answer,
    normalise,
)
from posttrain.rewards.mathtext import (
    Reading,
    is_formula_line,
    plain_math,
    read_math,
    without_prose,
    without_text,
)
from posttrain.rewards.workers import WorkerFailure, ask

WALL_LIMIT = 3.0
"""Seconds after which a comparison is given up: some answers hang a computer algebra system."""
MAX_ANSWER_CHARS = 2000
"""Longer answers fail; of a text in which nothing marks the answer, so much of the end is read."""
_MAX_UNORDERED = 8
_CLOSE = Decimal("0.001")
_SET_LIKE = re.compile(r"\\(?:cup|cap|in|le|leq|ge|geq|ne|neq|lt|gt|emptyset|mathbb|setminus)|[<>]")
_ALTERNATIVES = re.compile(r"\d[^.\n]*?\bor\b[^\n]*?\d[^\n]*$")


def verify_math(prompt: Prompt, text: str) -> Outcome:
    """Pass when the text's final answer equals the reference; None where math-verify fails."""
    answer, form = read_answer(text)
    reference = final_answer(prompt.reference)
    extracted = f"{form}: {brief(answer)}; reference: {brief(reference)}"
    passed: bool | None
    try:
        passed, why = _decide(reference, answer, free=form == "free text")
    except WorkerFailure as failure:
        passed, why = None, failure.why
    return Outcome(passed=passed, score=float(passed or 0), why=why, extracted=extracted)


def fits_math(prompt: Prompt) -> str | None:
    """The reference must hold something that math-verify can read."""
    reference = final_answer(prompt.reference)
    if not reference:
        return "the reference is empty"
    if len(reference) > MAX_ANSWER_CHARS:
        return f"the reference has {len(reference)} characters, at most {MAX_ANSWER_CHARS} are read"
    reading = read_math(reference)
    try:
        for part in reading.parts:
            request = {"do": "parse", "text": part}
            if as_number(part) is None and not ask("math", request, seconds=WALL_LIMIT):
                return "the reference is no mathematical expression"
    except WorkerFailure as failure:
        return f"the reference cannot be checked: {failure.why}"
    return None


def read_answer(text: str) -> tuple[str, str]:
    r"""What the text gives as its answer, and in which form.

    Marked answers (see `answers.final_answer`) come first; boxes joined by `and`, `or` or a comma
    are one list. Else the last line where it is a formula and nothing else, else the text's end, in
    which math-verify looks for the last formula.

    >>> read_answer("So $x = 2$.\nThe answer is 2, because 1 + 1 = 2.")
    ('2', 'answer line')
    >>> read_answer(r"\boxed{1} or \boxed{2}")
    ('1, 2', 'boxed')
    >>> read_answer("1 + 1 = 2\n2")
    ('2', 'last line')
    """
    answer, form = locate_answer(text)
    if form == "boxed":
        return ", ".join(last_boxed_run(text)), form
    if form == "answer line":
        return without_prose(answer), form
    if form != "whole text":
        return answer, form
    last = answer.splitlines()[-1].strip() if answer else ""
    if len(last) <= 200 and is_formula_line(last):
        return last, "last line"
    return answer[-MAX_ANSWER_CHARS:], "free text"


def _decide(reference: str, answer: str, *, free: bool) -> tuple[bool | None, str]:
    """Whether an answer equals the reference, and why."""
    if normalise(without_text(answer)) == normalise(without_text(reference)):
        return True, "equal"
    if len(answer) > MAX_ANSWER_CHARS:
        most = f"at most {MAX_ANSWER_CHARS} are read"
        return False, f"the answer has {len(answer)} characters, {most}"
    expected = read_math(reference)
    if plain_math(answer).replace(" ", "") == expected.whole.replace(" ", ""):
        return True, "equal"
    if free:
        if len(expected.parts) == 1 and _ALTERNATIVES.search(answer.splitlines()[-1]):
            return False, f"several answers: expected {brief(reference)}, got {brief(answer[-60:])}"
        return _one(expected.whole, answer)
    got = read_math(answer)
    if expected.shape == got.shape == "one":
        return _value(expected, got)
    if "one" not in (expected.shape, got.shape):
        return _lists(expected, got)
    single = expected if expected.shape == "one" else got
    if _SET_LIKE.search(single.whole):
        return _one(expected.whole, got.whole)
    kind = "several answers" if single is expected else "too few answers"
    return False, f"{kind}: {expected_got(reference, answer)}"


def _value(expected: Reading, got: Reading) -> tuple[bool | None, str]:
    """One value each, with units or without."""
    (value,), (unit,) = expected.parts, expected.units
    (given,), (other,) = got.parts, got.units
    if unit and other and unit != other:
        return False, f"expected {brief(value)} {unit}, got {brief(given)} {other}"
    passed, why = _one(value, given)
    if passed is False and bool(unit) != bool(other):
        # What looks like a unit on one side is a factor on the other: 5m and 5 m.
        again, _ = _one(expected.whole, got.whole)
        return (True, "equal") if again else (passed, why)
    return passed, why


def _lists(expected: Reading, got: Reading) -> tuple[bool | None, str]:
    """Two lists: brackets, length, then the elements."""
    shapes = {expected.shape, got.shape} - {"bare"}
    if len(shapes) == 2 or len(expected.parts) != len(got.parts):
        return False, expected_got(expected.whole, got.whole)
    for unit, other in zip(expected.units, got.units, strict=True):
        if unit and other and unit != other and shapes - {"{}"}:
            return False, expected_got(expected.whole, got.whole)
    size = len(expected.parts)
    ordered = bool(shapes - {"{}"}) or size > _MAX_UNORDERED
    if ordered:
        pairs = list(zip(expected.parts, got.parts, strict=True))
    else:
        pairs = [(one, other) for one in expected.parts for other in got.parts]
    found = _compare(pairs)
    if any(not one["reference"] for one in found):
        return None, "the reference is no mathematical expression"
    equal = [bool(one["equal"]) for one in found]
    if ordered:
        passed = all(equal)
    else:
        passed = _matching([equal[i : i + size] for i in range(0, size * size, size)])
    return passed, "equal" if passed else expected_got(expected.whole, got.whole)


def _one(reference: str, answer: str) -> tuple[bool | None, str]:
    (found,) = _compare([(reference, answer)])
    if not found["reference"]:
        return None, "the reference is no mathematical expression"
    if not found["answer"]:
        return False, "no mathematical answer found"
    if found["equal"]:
        return True, "equal"
    return False, expected_got(found["reference"], found["answer"])


def _compare(pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """The readings of each pair and whether they are equal; plain numbers need no worker."""
    found: list[dict[str, Any] | None] = [_numbers(*pair) for pair in pairs]
    asked = [pair for pair, known in zip(pairs, found, strict=True) if known is None]
    if asked:
        request = {"do": "compare", "pairs": asked}
        answers = iter(ask("math", request, seconds=WALL_LIMIT))
        found = [next(answers) if known is None else known for known in found]
    return [known for known in found if known is not None]


def _numbers(reference: str, answer: str) -> dict[str, Any] | None:
    """The comparison of two plain numbers; None for others, and where they may round alike."""
    expected, got = as_number(reference), as_number(plain_math(answer))
    if expected is None or got is None:
        return None
    if got != expected and abs(got - expected) <= _CLOSE * max(abs(got), abs(expected)):
        return None
    return {"reference": reference, "answer": answer, "equal": got == expected}


def _matching(equal: Sequence[Sequence[bool]]) -> bool:
    """Whether the rows can be paired with the columns, each with one it is equal to."""
    taken: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, same in enumerate(equal[row]):
            if same and column not in tried:
                tried.add(column)
                if column not in taken or place(taken[column], tried):
                    taken[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(equal)))
