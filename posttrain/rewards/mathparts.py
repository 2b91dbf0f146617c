"""Mathematical answers taken apart: lists, names, units, times of day, ratios and other bases."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from posttrain.rewards.mathtext import plain_math

Shape = Literal["one", "bare", "()", "[]", "{}", "(]", "[)"]
_SEPARATOR = re.compile(r",|;|(?<![\w\\])(?:or|and)(?![\w])")
_NAMED_LIST = re.compile(
    r"^(?:[A-Za-z]\w?|\([A-Za-z](?:,\s*[A-Za-z])+\))\s*(?:=|\\in(?![A-Za-z]))\s*"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """An answer taken apart."""

    shape: Shape
    """`one`: no list; `bare`: a list without brackets; else its brackets."""
    parts: tuple[str, ...]
    """The elements of the list, or the one value."""
    whole: str
    """Everything, in the one way of writing."""


def read_math(text: str) -> Reading:
    r"""Return an answer's shape and parts.

    >>> reading = read_math("x = 1 or x = 2")
    >>> reading.shape, reading.parts
    ('bare', ('x = 1', 'x = 2'))
    >>> read_math(r"\left(1, \frac{1}{2}\right]").shape
    '(]'
    """
    whole = plain_math(text)
    inside, shape = _unbracketed(_NAMED_LIST.sub("", whole))
    if shape == "one":
        inside = whole
    parts = [part for piece in split_list(inside) for part in _both_signs(piece)]
    if shape == "one" and len(parts) > 1:
        shape = "bare"
    elif shape != "one" and len(parts) < 2:
        # A pair of brackets around one value is punctuation, but {5} is 5 too.
        inside, shape = (inside if shape == "{}" else whole), "one"
        parts = [inside]
    return Reading(shape=shape, parts=tuple(parts), whole=whole)


def _unbracketed(text: str) -> tuple[str, Shape]:
    """Return what one pair of brackets encloses, with the pair; else `one` and no pair."""
    for left, right in (("\\{", "\\}"), ("{", "}")):
        if text.startswith(left) and text.endswith(right) and _encloses(text, len(left)):
            return text[len(left) : -len(right)].strip(), "{}"
    first, last = text[:1], text[-1:]
    if first in ("(", "[") and last in (")", "]") and _encloses(text, 1):
        shapes: dict[str, Shape] = {"()": "()", "[]": "[]", "(]": "(]", "[)": "[)"}
        return text[1:-1].strip(), shapes[first + last]
    return text, "one"


def _encloses(text: str, start: int) -> bool:
    """Return True if the bracket before `start` closes at the very end."""
    depth = 1
    for position in range(start, len(text)):
        depth += (text[position] in "([{") - (text[position] in ")]}")
        if depth == 0:
            return position == len(text) - 1
    return False


def split_list(text: str) -> list[str]:
    """Return the elements between top-level commas, semicolons, `and` and `or`.

    >>> split_list("f(1,2), \\\\frac{1}{2} or 3"), split_list("p = 5, q = 2; p = 7, q = 2")
    (['f(1,2)', '\\\\frac{1}{2}', '3'], ['p = 5, q = 2', 'p = 7, q = 2'])
    """
    if "\\begin" in text:
        return [text]
    depth, cuts = 0, list[tuple[int, int, str]]()
    for position, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        found = _SEPARATOR.match(text, position) if depth == 0 else None
        if found:
            cuts.append((position, found.end(), found[0]))
    signs = {sign for _, _, sign in cuts}
    if "," in signs and signs & {";", "and", "or"}:
        outer = [cut for cut in cuts if cut[2] != ","]
        if ";" in signs or all(one.count("=") > 1 for one in _cut(text, outer)):
            cuts = outer
    return _cut(text, cuts) or [text]


def _cut(text: str, cuts: list[tuple[int, int, str]]) -> list[str]:
    starts, ends = [0, *(end for _, end, _ in cuts)], [*(start for start, _, _ in cuts), len(text)]
    pieces = [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]
    return [piece for piece in pieces if piece]


def _both_signs(part: str) -> list[str]:
    """Return `a \\pm b` as its two values."""
    if len(re.findall(r"\\(?:pm|mp)(?![A-Za-z])", part)) != 1:
        return [part]
    return [re.sub(r"\\(?:pm|mp)(?![A-Za-z])\s*", sign, part) for sign in ("+", "-")]


# ---- one value

_CLOCK = re.compile(
    r"(\d{1,2})(?::([0-5]\d))?(?::([0-5]\d))?\s*(?:\\text\s*\{)?\s*(?:([ap])\.?\s*m)?\.?\s*\}?",
    re.IGNORECASE,
)
_BASED = re.compile(
    r"\(?(?P<digits>\d[\dA-Z]*|[A-Z]{2,})\)?_\{?\(?(?:\\text\{\s*)?(?:base\s*\}?)?\s*"
    r"(?P<base>[2-9]|[1-3]\d|two|eight|ten|sixteen)\s*\}?\)?\}?"
)
_WORDS = {"two": 2, "eight": 8, "ten": 10, "sixteen": 16}
_EQUALS = re.compile(r"(?<![<>!=\\])=(?!=)")


def split_name(text: str) -> tuple[str, str]:
    r"""Return the name of a named value, and the value; a chain of equations is its ends.

    Where the left side is a sum, an equation has no name.

    >>> split_name("x = 5"), split_name("48 + 24 = 72"), split_name("x + y = 2")
    (('x', '5'), ('', '72'), ('', 'x + y = 2'))
    >>> split_name("x = 2 + 3 = 5"), split_name("x = \\frac{1}{3} \\approx 0.33")
    (('x', '5'), ('x', '\\frac{1}{3}'))
    """
    exact, *rounded = re.split(r"\\(?:approx|simeq|doteq)(?![A-Za-z])", text)
    if rounded and re.fullmatch(r"[A-Za-z]\w*\s*", exact):
        exact = f"{exact} = {rounded[0]}"
    sides = [side.strip() for side in _at_top(exact, _EQUALS)]
    first, last = sides[0], sides[-1]
    if len(sides) < 2 or not last or re.search(r"[<>]|\\(?:[lg]e|[lg]t|ne|in)q?(?![A-Za-z])", text):
        return "", exact.strip()
    letters = re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", first))
    if not first or not (letters or re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", last))):
        return "", last
    if letters and len(_at_top(first, re.compile(r"(?<=[\w)}])\s*[-+]"))) == 1:
        return re.sub(r"[\s{}]", "", first), last
    return "", exact.strip()


def is_equation(text: str) -> bool:
    """Return whether a text states that two things are equal."""
    return len(_at_top(text, _EQUALS)) > 1


def _at_top(text: str, sign: re.Pattern[str]) -> list[str]:
    """Split a text at a sign outside of brackets."""
    depth, start, pieces = 0, 0, list[str]()
    for position, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0 and position >= start and (found := sign.match(text, position)):
            pieces.append(text[start:position])
            start = found.end()
    return [*pieces, text[start:]]


def as_clock(text: str) -> tuple[int, str] | None:
    """Return a time of day as seconds, and `a`, `p` or nothing; None for what is none.

    >>> as_clock("12:30 AM"), as_clock("9:30"), as_clock("9:75"), as_clock("5")
    ((1800, 'a'), (34200, ''), None, None)
    """
    found = _CLOCK.fullmatch(text)
    if not found or not (found[2] or found[4]) or int(found[1]) > 24:
        return None
    half = (found[4] or "").casefold()
    hour = int(found[1]) % 12 + 12 * (half == "p") if half else int(found[1])
    return hour * 3600 + int(found[2] or 0) * 60 + int(found[3] or 0), half


def as_ratio(text: str) -> list[str] | None:
    """Return the sides of a ratio; None for what is none.

    >>> as_ratio("3 : 4"), as_ratio("3/4")
    (['3', '4'], None)
    """
    sides = [side.strip() for side in _at_top(text, re.compile(":"))]
    return sides if len(sides) > 1 and all(sides) else None


def as_based(text: str) -> tuple[str, int] | None:
    r"""Return the digits and the base of a number with one; None for what is none.

    >>> as_based("101_2"), as_based("1F_{16}"), as_based("x_2"), as_based("12")
    (('101', 2), ('1F', 16), None, None)
    """
    found = _BASED.fullmatch(text)
    if not found:
        return None
    base = _WORDS.get(found["base"]) or int(found["base"])
    return found["digits"].lstrip("0") or "0", base


def decimal_comma(text: str) -> str | None:
    """Return a number with a decimal comma as one with a point; None for other texts.

    >>> decimal_comma("2,74"), decimal_comma("1, 2"), decimal_comma("1,2,3")
    ('2.74', None, None)
    """
    found = re.fullmatch(r"(-?\d+),(\d+)((?![\d,]).*)?", text)
    return found and f"{found[1]}.{found[2]}{found[3] or ''}"
