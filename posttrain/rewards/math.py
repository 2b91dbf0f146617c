r"""Verifier `math`: the answer is mathematically equal to the reference.

Lists are taken apart here and their elements compared by math-verify, which alone would take
`(1, 2)` and `\{1, 2\}` for equal. Here brackets count where both sides have them: `(1, 2)`,
`[1, 2]`, `(1, 2]` and `\{1, 2\}` are four answers. `\{...\}` has no order, nor have two lists
without brackets; a list without brackets fits any brackets.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from posttrain.records import Outcome, OutcomeKind, Prompt
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
from posttrain.rewards.verifier import Package, Verifier, decided, undecided
from posttrain.rewards.workers import WorkerFailure, WorkerKind, ask

WALL_LIMIT = 3.0
"""Seconds that a comparison may take: some answers hang a computer algebra system."""
MAX_ANSWER_CHARS = 2000
"""Longer answers fail; where nothing marks the answer, this much of the text's end is read."""
WORKER = WorkerKind(
    name="math",
    module="posttrain.rewards.math",
    package=Package(modules=("math_verify",), install="math-verify"),
    memory_bytes=1 << 30,
)
_MAX_UNORDERED = 8
_CLOSE = Decimal("0.001")
_SET_LIKE = re.compile(r"\\(?:cup|cap|in|le|leq|ge|geq|ne|neq|lt|gt|emptyset|mathbb|setminus)|[<>]")
_ALTERNATIVES = re.compile(r"\d[^.\n]*?\bor\b[^\n]*?\d[^\n]*$")


_EQUAL: tuple[OutcomeKind, str] = "passed", "equal"
_NO_REFERENCE: tuple[OutcomeKind, str] = (
    "bad_reference",
    "the reference is no mathematical expression",
)


def _verify(prompt: Prompt, text: str) -> Outcome:
    """Pass where the text's final answer equals the reference; None where math-verify fails."""
    answer, form = read_answer(text)
    reference = final_answer(prompt.reference)
    extracted = f"{form}: {brief(answer)}; reference: {brief(reference)}"
    try:
        kind, why = _compare_answers(reference, answer, free=form == "free text")
    except WorkerFailure as failure:
        return undecided(failure.kind, failure.why, extracted=extracted)
    if kind == "bad_reference":
        return undecided(kind, why, extracted=extracted)
    return decided(kind == "passed", kind, why, extracted=extracted)


def _check(prompt: Prompt) -> str | None:
    """Refuse a reference in which math-verify can read nothing."""
    reference = final_answer(prompt.reference)
    if not reference:
        return "the reference is empty"
    if len(reference) > MAX_ANSWER_CHARS:
        return f"the reference has {len(reference)} characters, at most {MAX_ANSWER_CHARS} are read"
    reading = read_math(reference)
    try:
        for part in reading.parts:
            request = {"do": "parse", "text": part}
            if as_number(part) is None and not ask(WORKER, request, seconds=WALL_LIMIT):
                return "the reference is no mathematical expression"
    except WorkerFailure as failure:
        return f"the reference cannot be checked: {failure.why}"
    return None


def read_answer(text: str) -> tuple[str, str]:
    r"""Return the answer that the text gives, and in which form.

    Marked answers (see `answers.final_answer`) come first; boxes joined by `and`, `or` or a comma
    are one list. Then the last line, if it is a formula and nothing else; then the end of the text,
    in which math-verify looks for the last formula.

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


def _compare_answers(reference: str, answer: str, *, free: bool) -> tuple[OutcomeKind, str]:
    """Return how an answer compares with the reference, and the reason in words."""
    if normalise(without_text(answer)) == normalise(without_text(reference)):
        return _EQUAL
    if len(answer) > MAX_ANSWER_CHARS:
        most = f"at most {MAX_ANSWER_CHARS} are read"
        return "too_long", f"the answer has {len(answer)} characters, {most}"
    expected = read_math(reference)
    if plain_math(answer).replace(" ", "") == expected.whole.replace(" ", ""):
        return _EQUAL
    if free:
        if len(expected.parts) == 1 and _ALTERNATIVES.search(answer.splitlines()[-1]):
            said = f"expected {brief(reference)}, got {brief(answer[-60:])}"
            return "several_answers", f"several answers: {said}"
        return _one(expected.whole, answer)
    got = read_math(answer)
    if expected.shape == got.shape == "one":
        return _value(expected, got)
    if "one" not in (expected.shape, got.shape):
        return _lists(expected, got)
    single = expected if expected.shape == "one" else got
    if _SET_LIKE.search(single.whole):
        return _one(expected.whole, got.whole)
    if single is expected:
        return "several_answers", f"several answers: {expected_got(reference, answer)}"
    return "too_few_answers", f"too few answers: {expected_got(reference, answer)}"


def _value(expected: Reading, got: Reading) -> tuple[OutcomeKind, str]:
    """Compare one value with one, with units or without."""
    (value,), (unit,) = expected.parts, expected.units
    (given,), (other,) = got.parts, got.units
    if unit and other and unit != other:
        return "wrong", f"expected {brief(value)} {unit}, got {brief(given)} {other}"
    found = _one(value, given)
    if found[0] in ("wrong", "no_answer") and bool(unit) != bool(other):
        # What looks like a unit on one side is a factor on the other: 5m and 5 m.
        again = _one(expected.whole, got.whole)
        return _EQUAL if again == _EQUAL else found
    return found


def _lists(expected: Reading, got: Reading) -> tuple[OutcomeKind, str]:
    """Compare two lists: brackets, length, then the elements."""
    shapes = {expected.shape, got.shape} - {"bare"}
    if len(shapes) == 2 or len(expected.parts) != len(got.parts):
        return "wrong", expected_got(expected.whole, got.whole)
    for unit, other in zip(expected.units, got.units, strict=True):
        if unit and other and unit != other and shapes - {"{}"}:
            return "wrong", expected_got(expected.whole, got.whole)
    size = len(expected.parts)
    ordered = bool(shapes - {"{}"}) or size > _MAX_UNORDERED
    if ordered:
        pairs = list(zip(expected.parts, got.parts, strict=True))
    else:
        pairs = [(one, other) for one in expected.parts for other in got.parts]
    found = _compare(pairs)
    if any(not one["reference"] for one in found):
        return _NO_REFERENCE
    equal = [bool(one["equal"]) for one in found]
    if ordered:
        passed = all(equal)
    else:
        passed = _matching([equal[i : i + size] for i in range(0, size * size, size)])
    return _EQUAL if passed else ("wrong", expected_got(expected.whole, got.whole))


def _one(reference: str, answer: str) -> tuple[OutcomeKind, str]:
    (found,) = _compare([(reference, answer)])
    if not found["reference"]:
        return _NO_REFERENCE
    if not found["answer"]:
        return "no_answer", "no mathematical answer found"
    if found["equal"]:
        return _EQUAL
    return "wrong", expected_got(found["reference"], found["answer"])


def _compare(pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Read each pair and compare it; plain numbers need no worker."""
    found: list[dict[str, Any] | None] = [_numbers(*pair) for pair in pairs]
    asked = [pair for pair, known in zip(pairs, found, strict=True) if known is None]
    if asked:
        request = {"do": "compare", "pairs": asked}
        answers = iter(ask(WORKER, request, seconds=WALL_LIMIT))
        found = [next(answers) if known is None else known for known in found]
    return [known for known in found if known is not None]


def _numbers(reference: str, answer: str) -> dict[str, Any] | None:
    """Compare two plain numbers; None for others, and where they may round alike."""
    expected, got = as_number(reference), as_number(plain_math(answer))
    if expected is None or got is None:
        return None
    if got != expected and abs(got - expected) <= _CLOSE * max(abs(got), abs(expected)):
        return None
    return {"reference": reference, "answer": answer, "equal": got == expected}


def _matching(equal: Sequence[Sequence[bool]]) -> bool:
    """Return whether rows and columns can be paired, each with one that it is equal to."""
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


# ---- in the worker

_WORDS = re.compile(
    r"(?<![\\A-Za-z])(?:[A-Za-z]{4,}|(?:it|is|so|we|get|the|are|has|to|of|my|be)(?![A-Za-z]))",
    re.IGNORECASE,
)
_MAX_FORMULA_CHARS = 300
# Past this relative difference two numbers differ even where six decimals agree: 1e-9 and 2e-9.
_RELATIVE = 1e-3


@functools.lru_cache(maxsize=256)
def parsed(text: str) -> list[Any]:
    """Return math-verify's reading of a text; a bare formula is read as one without dollar signs.

    A formula that it cannot read gives nothing, where math-verify would take its last number.
    """
    math_verify = importlib.import_module("math_verify")
    wrapped = "$" in text or "\\boxed" in text or "\\[" in text or "\\(" in text
    has_words = _WORDS.search(text) is not None
    formula = "\\" in text or not has_words
    if not wrapped and formula and len(text) <= _MAX_FORMULA_CHARS:
        plain = () if "\\" in text else (math_verify.ExprExtractionConfig(),)
        forms = (math_verify.LatexExtractionConfig(), *plain)
        found = math_verify.parse(f"${text}$", extraction_config=forms, parsing_timeout=0)
        if found or "\\" in text:
            return found
    return math_verify.parse(text, parsing_timeout=0)


def load_worker() -> None:
    """Import math-verify and let it load what every reading needs."""
    parsed("1")


def answer_request(request: dict[str, Any]) -> Any:
    """Answer `parse` (can the text be read?) or `compare` (read and compare every pair)."""
    if request["do"] == "parse":
        return bool(parsed(request["text"]))
    return [compared(reference, answer) for reference, answer in request["pairs"]]


def compared(reference_text: str, answer_text: str) -> dict[str, Any]:
    """Return the readings of a reference and an answer, and whether they are equal."""
    reference, answer = parsed(reference_text), parsed(answer_text)
    equal = bool(reference and answer) and verified(reference, answer)
    if equal and "%" not in reference_text + answer_text:
        equal = not clearly_apart(reference[0], answer[0])
    return {
        "reference": shown(reference),
        "answer": shown(answer),
        "equal": equal,
    }


def verified(reference: list[Any], answer: list[Any]) -> bool:
    """Return whether math-verify takes both for equal; an answer that it fails on is not equal.

    Raises where it fails on the reference alone, too: then the answer is not to blame.
    """
    try:
        return agree(reference, answer)
    except MemoryError:
        raise
    except Exception:
        agree(reference, reference)
        return False


def agree(one: list[Any], other: list[Any]) -> bool:
    """Call `math_verify.verify` without a time-out of its own, its errors raised."""
    math_verify = importlib.import_module("math_verify")
    return bool(
        math_verify.verify(
            one, other, timeout_seconds=0, allow_set_relation_comp=True, raise_on_error=True
        )
    )


def clearly_apart(one: Any, other: Any) -> bool:
    """Return whether two plain numbers differ, relative to the larger; 0 differs from every other.

    math-verify alone rounds to 6 decimals.
    """
    sympy = importlib.import_module("sympy")
    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)):
        return False
    if any(e.has(sympy.UnevaluatedExpr) or not e.is_number for e in (one, other)):
        return False
    first, second = one.evalf(15), other.evalf(15)
    if not (first.is_Float or first.is_Integer) or not (second.is_Float or second.is_Integer):
        return False
    return bool(abs(first - second) > _RELATIVE * max(abs(first), abs(second)))


def shown(found: list[Any]) -> str:
    """Write a reading as text; very long numbers have none."""
    if not found:
        return ""
    try:
        return str(found[-1])[:200]
    except ValueError:
        return "a very long number"


MATH = Verifier(
    name="math",
    summary="mathematically equal",
    takes="the answer, or a worked solution",
    verify=_verify,
    check=_check,
    read_reference=final_answer,
    is_scorable=True,
    package=WORKER.package,
)
