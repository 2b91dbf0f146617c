"""Verifier `choice`: one option of several, by its label or its text.

The reference is `{"options": {"A": "Paris", "B": "Rome"}, "answer": "A"}` as JSON text (a list of
options is labelled A, B, ...), or a label alone with the options in `meta["options"]` or nowhere.
An answer that names two options fails, whatever else it says.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Mapping
from typing import Any, cast

from posttrain.records import Outcome, Prompt
from posttrain.rewards.answers import brief, normalise
from posttrain.rewards.places import DENIAL, last_lines, locate_answer
from posttrain.rewards.verifier import Verifier, decided, undecided

MAX_ANSWER_CHARS = 2000
"""Characters that are read: from the start of a marked answer, else from the end of the text."""
_NAMING = re.compile(
    r"^(?:definitely|probably|clearly|option|choice|letter|answer)\s+", re.IGNORECASE
)
_DENIED_AFTER = re.compile(
    r"[)\]*.\s]*\s(?:(?:is|was|are)(?:\s+\w+ly)?\s+(?:not|wrong|false|incorrect|ruled\s+out)\b"
    r"|\w+n['’]t\b|cannot\b|can\s+not\b|must\s+not\b)|\s*(?:不是|不对|是错|ではな|이?\s*아니)",  # noqa: RUF001
    re.IGNORECASE,
)
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed)\s*\{([^{}]*)\}")


def _verify(prompt: Prompt, text: str) -> Outcome:
    """Pass where the text names the right option and no other."""
    task = read_task(prompt)
    if isinstance(task, str):
        return undecided("bad_reference", task)
    options, right = task
    answer, form = _marked(text)
    chosen = named_options(answer, options)
    extracted = f"{form}: {brief(answer)}"
    if not chosen:
        return decided(False, "no_answer", "no choice found", extracted=extracted)
    if len(chosen) > 1:
        why = f"several answers: {', '.join(sorted(chosen))}"
        return decided(False, "several_answers", why, extracted=extracted)
    if _is_denied(answer, options, *chosen):
        return decided(False, "no_answer", "the option is denied", extracted=extracted)
    why = "equal" if chosen == {right} else f"expected {right}, got {next(iter(chosen))}"
    return decided(chosen == {right}, "wrong", why, extracted=extracted)


def _check(prompt: Prompt) -> str | None:
    task = read_task(prompt)
    return task if isinstance(task, str) else None


def read_task(prompt: Prompt) -> tuple[dict[str, str], str] | str:
    """Return the options by label (texts empty where unknown) and the right label, or the fault."""
    reference = prompt.reference.strip()
    options: Any = prompt.meta.get("options")
    right: Any = reference
    if reference.startswith("{"):
        try:
            task: Any = json.loads(reference)
        except ValueError as error:
            return f"the reference is no JSON: {error}"
        if set(task) != {"options", "answer"}:
            return 'the reference must be {"options": ..., "answer": ...}'
        options, right = task["options"], task["answer"]
    if isinstance(options, list):
        listed = cast("list[Any]", options)
        options = dict(zip(string.ascii_uppercase, listed, strict=False))
    if options is None:
        label = folded(str(right)).strip("().")
        if not re.fullmatch("[A-Z]", label):
            return "the reference is neither a letter nor JSON with options and answer"
        return dict.fromkeys(string.ascii_uppercase, ""), label
    if not isinstance(options, dict):
        return "options must be a mapping from label to text, or a list"
    texts = cast("dict[Any, Any]", options)
    if len(texts) < 2 or any(not isinstance(one, str | int | float) for one in texts.values()):
        return "options must be at least two texts"
    labelled = {folded(str(label)): str(one) for label, one in texts.items()}
    if len({normalise(one) for one in labelled.values()} - {""}) != len(texts):
        return "two options are the same, or one is empty"
    label = folded(str(right)).strip("().")
    by_text = [name for name, one in labelled.items() if normalise(one) == normalise(str(right))]
    if label not in labelled and not by_text:
        return f"the answer {brief(str(right))!r} is none of the options {', '.join(labelled)}"
    return labelled, label if label in labelled else by_text[0]


def folded(text: str) -> str:
    """Fold a label: compatible characters, upper case.

    >>> folded("b "), folded("甲")
    ('B', '甲')
    """
    return unicodedata.normalize("NFKC", text).strip().upper()


def _marked(text: str) -> tuple[str, str]:
    """Return the answer that the text gives, and how it was found."""
    answer, form = locate_answer(text)
    if form != "whole text":
        return answer[:MAX_ANSWER_CHARS], form
    lines = list(last_lines(answer))
    if len(lines) > 1:
        answer, form = lines[0], "last line"
    return answer[-MAX_ANSWER_CHARS:], form


def named_options(answer: str, options: Mapping[str, str]) -> set[str]:
    """Return the labels of all options that a text names, by label or by text.

    >>> options = {"A": "a cat", "B": "a dog"}
    >>> [sorted(named_options(t, options)) for t in ("(B)", "B. a dog", "A or B", "a dog", "?")]
    [['B'], ['B'], ['A', 'B'], ['B'], []]
    """
    answer = unicodedata.normalize("NFKC", _WRAPPED.sub(r"\1", answer))
    answer = _NAMING.sub("", answer.strip().strip("*_`$\"' "))
    by_text = {label for label, one in options.items() if one and _same(answer, one)}
    if by_text:
        return by_text
    names = "|".join(sorted(map(re.escape, options), key=len, reverse=True))
    edge_before, edge_after = r"(?<![^\W_])(?<!['’])", r"(?![^\W_])(?!['’])"  # noqa: RUF001
    label = re.compile(f"{edge_before}({names}){edge_after}", re.IGNORECASE)
    # A label that opens the answer, with its own text or another's behind it.
    opening = re.match(rf"[(\[]?\s*({names})\s*(?:[)\].:,]|$|\s[-–—]\s)", answer, re.IGNORECASE)  # noqa: RUF001
    named: set[str] = set()
    if opening:
        first = opening[1].upper()
        rest = answer[opening.end() :]
        if not rest.strip(" .*") or (options[first] and _same(rest, options[first])):
            return {first}
        named.add(first)
        answer = rest
        named |= {other for other, one in options.items() if one and _same(rest, one)}
    stated = _without_texts(answer, options, named)
    for found in label.finditer(stated):
        if _is_label(found, stated):
            named.add(found[1].upper())
    return named


def _is_denied(answer: str, options: Mapping[str, str], label: str) -> bool:
    """Return whether the answer says that the one option that it names is wrong."""
    texts = _without_texts(answer, options, set())
    names = [label, *filter(None, [options.get(label)])]
    for name in map(re.escape, names):
        for found in re.finditer(rf"(?<![^\W_]){name}(?![^\W_])", answer, re.IGNORECASE):
            before = texts[: found.start()] if len(texts) == len(answer) else ""
            if DENIAL.search(before) or _DENIED_AFTER.match(answer, found.end()):
                return True
    return False


def _is_label(found: re.Match[str], text: str) -> bool:
    """Return whether a standing letter is meant as a label: `a dog` and `I think` hold none."""
    written, after = found[1], text[found.end() :]
    bracketed = text[found.start() - 1 : found.start()] in ("(", "[") and after[:1] in (")", "]")
    if bracketed or text.strip(" .*()") == written:
        return True
    if not written.isupper() and written.isascii():
        return False
    return not (written in ("A", "I") and re.match(r"\s+[a-z]", after) and not _joins(after))


def _joins(after: str) -> bool:
    return (
        re.match(
            r"\s+(?:or|and|nor|is|was|but|because|since|as|vs|versus|then|maybe|perhaps)\b", after
        )
        is not None
    )


def _without_texts(answer: str, options: Mapping[str, str], named: set[str]) -> str:
    """Blank out the options' texts in the answer, adding the options that it states to `named`."""
    lowered = answer.casefold()
    for label, one in sorted(options.items(), key=lambda item: -len(item[1])):
        text = normalise(one)
        if len(text) < 2:
            continue
        standing = re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")
        if standing.search(lowered):
            named.add(label)
            lowered = standing.sub(lambda m: " " * len(m[0]), lowered)
    if len(lowered) != len(answer):
        return answer
    return "".join(a if b != " " else " " for a, b in zip(answer, lowered, strict=True))


def _same(text: str, option: str) -> bool:
    return normalise(text) == normalise(option)


CHOICE = Verifier(
    name="choice",
    summary="one option of several",
    takes="a letter, or JSON with options and answer",
    verify=_verify,
    check=_check,
    reference_from="answer or column",
)
