"""Verifier `math`: the answer is mathematically equal to the reference.

Comparisons run in a worker process, since some answers hang a computer algebra system.
"""

from __future__ import annotations

import re

from posttrain.records import Outcome, OutcomeKind, Prompt
from posttrain.rewards.answers import brief, expected_got
from posttrain.rewards.mathequal import same_at_sight
from posttrain.rewards.mathtext import formula_in
from posttrain.rewards.places import (
    DENIAL,
    final_answer,
    last_lines,
    marked_answers,
    without_reasoning,
)
from posttrain.rewards.verifier import Package, Verifier, decided, undecided
from posttrain.rewards.workers import WorkerFailure, WorkerKind, ask

WALL_LIMIT = 3.0
"""Seconds that a comparison may take."""
MAX_ANSWER_CHARS = 2000
"""Longer answers fail."""
WORKER = WorkerKind(
    name="math",
    module="posttrain.rewards.mathequal",
    package=Package(modules=("math_verify",), install="math-verify"),
    memory_bytes=1 << 30,
)
_WHY: dict[OutcomeKind, str] = {
    "passed": "equal",
    "several_answers": "several answers: ",
    "too_few_answers": "too few answers: ",
    "no_answer": "no mathematical answer found",
    "bad_reference": "the reference is no mathematical expression",
}


def _verify(prompt: Prompt, text: str) -> Outcome:
    """Pass where the text's final answer equals the reference; None where math-verify fails."""
    answer, form = read_answer(text)
    reference, _ = read_answer(prompt.reference)
    extracted = f"{form}: {brief(answer)}; reference: {brief(reference)}"
    if len(answer) > MAX_ANSWER_CHARS:
        why = f"the answer has {len(answer)} characters, at most {MAX_ANSWER_CHARS} are read"
        return decided(False, "too_long", why, extracted=extracted)
    try:
        kind = _compare(reference, answer)
    except WorkerFailure as failure:
        return undecided(failure.kind, failure.why, extracted=extracted)
    why = _WHY.get(kind, "")
    if kind == "bad_reference":
        return undecided(kind, why, extracted=extracted)
    if not why or why.endswith(" "):
        why += expected_got(reference, answer)
    return decided(kind == "passed", kind, why, extracted=extracted)


def _check(prompt: Prompt) -> str | None:
    """Refuse a reference in which math-verify can read nothing."""
    if not final_answer(prompt.reference):
        return "the reference is empty"
    reference, _ = read_answer(prompt.reference)
    if len(reference) > MAX_ANSWER_CHARS:
        return f"the reference has {len(reference)} characters, at most {MAX_ANSWER_CHARS} are read"
    try:
        request = {"do": "parse", "text": reference}
        if reference and (
            same_at_sight(reference, "0") is not None or ask(WORKER, request, seconds=WALL_LIMIT)
        ):
            return None
    except WorkerFailure as failure:
        return f"the reference cannot be checked: {failure.why}"
    return "the reference is no mathematical expression"


def read_answer(text: str) -> tuple[str, str]:
    r"""Return the formula that the text gives as its answer, and in which form; both may be empty.

    A tag or a box is the answer whatever it holds. Other marks and, without one, the last lines
    count where they hold a formula.

    >>> read_answer("So $x = 2$.\nThe answer is 2, because 1 + 1 = 2.")
    ('2', 'answer line')
    >>> read_answer(r"\boxed{1} or \boxed{2}")
    ('1, 2', 'boxed')
    >>> read_answer("99-90=9\n她还剩9页没有看。")
    ('9', 'last line')
    """
    text = without_reasoning(text)
    for content, form in marked_answers(text):
        if form in ("tagged", "boxed"):
            return formula_in(content.splitlines()[-1] if content else "") or content, form
        if DENIAL.match(re.split(r"[.,;:!?。\n]", content, maxsplit=1)[0]):
            return "", form
        short = content[: MAX_ANSWER_CHARS + 1]
        if found := formula_in(short, leading=form == "answer line"):
            return found, form
    for line in last_lines(text):
        line = re.sub(r"^(?:A|Ans|Sol)\s*[:.]\s*(?=\S)", "", line)
        if found := formula_in(line):
            return found, "last line"
    return "", "no formula"


def _compare(reference: str, answer: str) -> OutcomeKind:
    """Compare two formulas; texts and plain numbers need no worker."""
    if not reference:
        return "bad_reference"
    if not answer:
        return "no_answer"
    if (seen := same_at_sight(reference, answer)) is not None:
        return "passed" if seen else "wrong"
    request = {"do": "compare", "reference": reference, "answer": answer}
    return ask(WORKER, request, seconds=WALL_LIMIT)


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
