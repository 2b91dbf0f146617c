"""Finding the answer in what a model wrote, and bringing it into a comparable form."""

from __future__ import annotations

import re
from decimal import Decimal

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"^[ \t]*####[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_ANSWER_LINE = re.compile(
    r"^\W*(?:(?:so|thus|hence|therefore)\W+)?(?:the\s+)?(?:final\s+)?answer(?:\s+is\b\s*:?|\s*[:=])"
    r"[*_\s]*(\S.*?)[*_\s]*$",
    re.MULTILINE | re.IGNORECASE,
)
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+)?")
_PAIRS = (('"', '"'), ("'", "'"), ("`", "`"), ("“", "”"), ("‘", "’"), ("$", "$"), ("**", "**"))  # noqa: RUF001


def final_answer(text: str) -> str:
    r"""What the text gives as its answer, else the whole text.

    Looked for in this order, the last one winning: `<answer>...</answer>`, `\boxed{...}`,
    a line `#### ...`, a line that begins with `answer:` or `the answer is`.

    >>> final_answer("3 + 4 = 7, so\nThe answer is 7.")
    '7.'
    >>> final_answer(r"Hence \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    if tagged := _TAGGED.findall(text):
        return tagged[-1].strip()
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    for pattern in (_HASHES, _ANSWER_LINE):
        if found := pattern.findall(text):
            return found[-1].strip()
    return text.strip()


def _last_boxed(text: str) -> str | None:
    """The inside of the last `\\boxed{...}` whose braces close."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin:position]
    return None


def tidy(text: str) -> str:
    """The text without outer whitespace, one closing period, and paired quotes or dollar signs.

    >>> tidy('  "Paris". ')
    'Paris'
    """
    while True:
        before = text
        text = text.strip()
        if text.endswith(".") and not text.endswith("..") and len(text) > 1:
            text = text[:-1]
        for left, right in _PAIRS:
            inner = text[len(left) : -len(right)]
            if text.startswith(left) and text.endswith(right) and inner and left not in inner:
                text = inner
        if text == before:
            return text


def normalise(text: str) -> str:
    """`tidy`, with case and whitespace folded."""
    return " ".join(tidy(text).split()).casefold()


def as_number(text: str) -> Decimal | None:
    """The value of a plain decimal number (thousands commas allowed), else None.

    >>> as_number("1,250.0") == as_number("1250")
    True
    """
    text = tidy(text)
    if len(text) > 200 or not any("0" <= c <= "9" for c in text) or not _NUMBER.fullmatch(text):
        return None
    return Decimal(text.replace(",", ""))


def brief(text: str, limit: int = 60) -> str:
    """The text on one line, cut to `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def expected_got(expected: str, got: str) -> str:
    """The reason for a wrong answer."""
    return f"expected {brief(expected)}, got {brief(got)}"
