"""Mathematical answers as text: one way of writing, parts of lists, units; nothing is evaluated."""

# Other scripts' signs are what this module is about.
# ruff: noqa: RUF001, RUF002

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

Shape = Literal["one", "bare", "()", "[]", "{}", "(]", "[)"]

_SIGNS = str.maketrans(
    {
        "−": "-", "–": "-", "×": "\\times ", "÷": "\\div ", "·": "\\cdot ", "⋅": "\\cdot ",
        "π": "\\pi ", "∞": "\\infty ", "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "∪": "\\cup ",
        "∩": "\\cap ", "∈": "\\in ", "±": "\\pm ", "∅": "\\emptyset ", "°": "^\\circ ",
        "٫": ".", "٬": ",", "،": ",", "、": ",", "。": ".", "€": "", "£": "", "¥": "", "₹": "",
    }
)  # fmt: skip
_SUPERSCRIPTS = {c: str(n) for n, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")} | {"⁻": "-", "⁺": "+", "ⁿ": "n"}
_SUPERSCRIPT = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_VULGAR = re.compile(r"(\d?)([¼-¾⅐-⅞])")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z]))")
_SCIENTIFIC = re.compile(r"(?<![\w.])(-?\d+(?:\.\d+)?)[eE]\+?(-?\d{1,4})(?!\w)")
_PLAIN_ROOT = re.compile(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)")
_IMAGINARY = re.compile(r"([\d})])\s*\*?\s*i(?![A-Za-z])")
_PLAIN_NAMES = {"pi": "\\pi ", "infinity": "\\infty ", "inf": "\\infty ", "oo": "\\infty "}
_PLAIN_NAME = re.compile(r"(?<![\\A-Za-z{])(?:pi|infinity|inf|oo)(?![A-Za-z])", re.IGNORECASE)
# 1{,}234  1\,234  1 234 567 (also with thin and hard spaces)  1'234  1_234
_SPACED_GROUPS = re.compile(
    r"(?<![\d.,])(\d{1,3})((?:(?:\{,\}|\\[,; ]|\\!,|[ '’_])\d{3})+)(?![\d])"
)
_COMMA_GROUPS = re.compile(r"(?<![\d.,])(\d{1,3})((?:,\d{3})+)(?!\d|,\d)")
_DOT_GROUPS = re.compile(r"(?<![\d.,])(\d{1,3})((?:\.\d{3}){2,})(?:,(\d+))?(?![\d.])")
_MIXED = re.compile(r"(?<![\w.,}^/])(-?)(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w.])")
_OPENS_LIST = re.compile(r"\s*(?:\\left|\\big)?\s*\\?[(\[{]")
_NO_MEANING = re.compile(
    r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|displaystyle|limits)(?![A-Za-z])|\\[!:>]"
)
_WORD_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textrm|textbf|mathbf|operatorname)\s*\{([^{}]*)\}")
# x \in ..., S = ..., before a list
_NAMED_LIST = re.compile(r"^(?:[A-Za-z]\w?|\([A-Za-z](?:,\s*[A-Za-z])+\))\s*(?:=|\\in)\s*")
# Words of formulas; what is left of three letters or more makes a line prose.
_NO_PROSE = re.compile(
    r"\\[A-Za-z]+|(?:text|mathrm)\{[^{}]*\}|\b(?:arc)?(?:sin|cos|tan)h?\b"
    r"|\b(?:log|exp|sqrt|abs|max|min|gcd|lcm|mod|det|percent)\b"
)
_PROSE_WORD = re.compile(r"[A-Za-z]{3,}")
_SEPARATOR = re.compile(r",|;|(?<![\w\\])(?:or|and)(?![\w])|\\(?:lor|vee|quad|qquad)\b")
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_PROSE = re.compile(
    r"\s*[,;.]?\s+(?:because|since|not|which|where|when|so|as|for|after|i\.e\.|that)\b.*", re.DOTALL
)

# Written forms -> one name; units outside this table are taken for a noun and passed by.
_UNITS = {
    name: unit
    for unit, names in {
        "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre",
        "m": "m meter metre", "km": "km kilometer kilometre", "in": "inch inches",
        "ft": "ft foot feet", "yd": "yd yard", "mi": "mile mi", "mg": "mg milligram",
        "g": "g gram", "kg": "kg kilogram", "t": "tonne", "lb": "lb pound", "oz": "oz ounce",
        "ms": "ms millisecond", "s": "s sec second", "min": "min minute", "h": "h hr hour",
        "day": "day", "week": "week", "month": "month", "year": "year yr", "ml": "ml milliliter",
        "l": "l liter litre", "gal": "gallon", "dollar": "dollar usd", "cent": "cent",
        "euro": "euro eur", "degree": "degree deg", "radian": "radian rad", "j": "j joule",
        "kj": "kj", "n": "n newton", "w": "w watt", "kw": "kw", "v": "v volt", "hz": "hz hertz",
        "pa": "pa pascal", "km/h": "km/h kmh kph", "m/s": "m/s", "mph": "mph", "mol": "mol mole",
    }.items()
    for name in names.split()
}  # fmt: skip
_UNIT = re.compile(
    r"(?P<value>.*?[\d})\]])(?:\s|~|\\[,; ])*"
    r"(?:(?P<latex>\\(?:text|mathrm|mbox|textrm)\s*\{[^{}]*\}"
    r"(?:\\(?:text|mathrm|mbox|textrm)\s*\{[^{}]*\}|[/^\d{}\s]|\\cdot)*)"
    r"|(?P<degree>\^\s*\{?\\circ\s*\}?(?:\s*[CF])?)"
    r"|(?<=[\s~,; \d}])(?P<plain>[A-Za-z][A-Za-z/^\d. ]*))$",
    re.DOTALL,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """An answer taken apart."""

    shape: Shape
    """`one`: no list; `bare`: a list without brackets; else its brackets."""
    parts: tuple[str, ...]
    """The elements of the list without units, or the one value."""
    units: tuple[str, ...]
    """The unit of each part, empty where there is none that we know."""
    whole: str
    """Everything, in the one way of writing."""


def plain_math(text: str) -> str:
    r"""Return the text with ASCII digits and signs, numbers ungrouped, LaTeX without padding.

    >>> plain_math("١٬٢٥٠"), plain_math("1{,}250"), plain_math("2 1/2"), plain_math("x² − √3")
    ('1250', '1250', '(2+1/2)', 'x^{2} - \\sqrt{3}')
    """
    text = _SUPERSCRIPT.sub(lambda m: "^{" + "".join(_SUPERSCRIPTS[c] for c in m[0]) + "}", text)
    text = _VULGAR.sub(lambda m: f"{m[1]} {unicodedata.normalize('NFKC', m[2])}", text)
    text = unicodedata.normalize("NFKC", text.translate(_SIGNS)).translate(_SIGNS)
    text = text.replace("⁄", "/")
    text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    text = _ROOT.sub(lambda m: f"\\sqrt{{{m[1] or m[2]}}}", text)
    text = _NO_MEANING.sub("", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = text.replace("\\$", "").replace("\\{", "\\lbrace ").replace("\\}", "\\rbrace ")
    text = text.replace("\\(", "").replace("\\)", "").replace("\\[", "").replace("\\]", "")
    text = text.replace("\\lbrace ", "\\{").replace("\\rbrace ", "\\}").replace("$", "")
    text = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text).replace("**", "^")
    text = _PLAIN_ROOT.sub(r"\\sqrt{\1}", text)
    text = _IMAGINARY.sub(r"\1 i", text)
    text = _PLAIN_NAME.sub(lambda m: _PLAIN_NAMES[m[0].lower()], text)
    text = re.sub(r"\\\{\s*\\\}", r"\\emptyset ", text)
    text = _SPACED_GROUPS.sub(lambda m: m[1] + re.sub(r"\D", "", m[2]), text)
    text = _DOT_GROUPS.sub(
        lambda m: m[1] + m[2].replace(".", "") + (f".{m[3]}" if m[3] else ""), text
    )
    if not _OPENS_LIST.match(text):
        text = _COMMA_GROUPS.sub(lambda m: m[1] + m[2].replace(",", ""), text)
    text = _MIXED.sub(lambda m: f"{m[1]}({m[2]}+{m[3]}/{m[4]})", text)
    return " ".join(text.replace("\\ ", " ").split()).rstrip(".").strip()


def is_formula_line(line: str) -> bool:
    """Return True if a line is an answer alone: formulas, units, at most one noun each.

    >>> [is_formula_line(line) for line in ("72 clips", "sqrt(3)", "I counted 72")]
    [True, True, False]
    """
    parts = read_math(line).parts
    return not any(_PROSE_WORD.search(_NO_PROSE.sub(" ", part)) for part in parts)


def without_text(text: str) -> str:
    r"""Return the text with `\text{...}` and its kin unwrapped.

    >>> without_text("\\text{Evelyn}")
    'Evelyn'
    """
    return _WORD_TEXT.sub(r"\1", text)


def without_prose(text: str) -> str:
    """Return a sentence's answer without what follows it: `12, because 3*4 = 12` -> `12`."""
    return _PROSE.sub("", text, count=1) or text


def read_math(text: str) -> Reading:
    r"""Return an answer's shape, parts and units.

    >>> reading = read_math("x = 1 or x = 2")
    >>> reading.shape, reading.parts
    ('bare', ('x = 1', 'x = 2'))
    >>> read_math(r"\left(1, \frac{1}{2}\right]").shape
    '(]'
    >>> read_math("5 \\text{ meters}").units
    ('m',)
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
    valued = [split_unit(part) for part in parts]
    return Reading(
        shape=shape,
        parts=tuple(value for value, _ in valued),
        units=tuple(unit for _, unit in valued),
        whole=whole,
    )


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

    >>> split_list("f(1,2), \\\\frac{1}{2} or 3")
    ['f(1,2)', '\\\\frac{1}{2}', '3']
    """
    text = re.sub(r"\\text\s*\{\s*,?\s*(and|or)\s*,?\s*\}", r" \1 ", text)
    if "\\begin" in text:
        return [text]
    depth, start, parts = 0, 0, list[str]()
    position = 0
    while position < len(text):
        char = text[position]
        depth += (char in "([{") - (char in ")]}")
        found = _SEPARATOR.match(text, position) if depth == 0 else None
        if found:
            parts.append(text[start:position])
            position = start = found.end()
        else:
            position += 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()] or [text]


def _both_signs(part: str) -> list[str]:
    """Return `a \\pm b` as its two values."""
    if len(re.findall(r"\\pm(?![A-Za-z])", part)) != 1:
        return [part]
    return [re.sub(r"\\pm(?![A-Za-z])\s*", sign, part) for sign in ("+", "-")]


def split_unit(text: str) -> tuple[str, str]:
    r"""Return a value and its unit; words that are no unit we know are dropped.

    >>> split_unit("3 km"), split_unit("72 clips"), split_unit("5x"), split_unit("9 \\text{ cm}^2")
    (('3', 'km'), ('72', ''), ('5x', ''), ('9', 'cm2'))
    """
    found = _UNIT.fullmatch(text)
    if not found or "%" in text:
        return text, ""
    value = found["value"].strip()
    if found["degree"]:
        return value, "degree" + found["degree"].rstrip()[-1:].strip("}c")
    if found["latex"] is not None:
        words = _WORD_TEXT.sub(r" \1 ", found["latex"])
        return (text, "") if _means_percent(words) else (value, unit_name(words))
    words = found["plain"].strip()
    named = unit_name(words)
    spaced = value != found["value"] or text[len(value)] == " "
    algebra = not spaced and named not in ("cm", "mm", "km", "kg", "mg", "ml")
    if _means_percent(words) or algebra or (len(words) == 1 and not named):
        return text, ""
    return value, named


def _means_percent(words: str) -> bool:
    return re.search(r"\b(?:percent|pct|percentage)\b", words, re.IGNORECASE) is not None


def unit_name(words: str) -> str:
    """Return the one name of a unit; empty for words that are none.

    >>> unit_name("square centimeters"), unit_name("miles per hour"), unit_name("hair clips")
    ('cm2', 'mi/h', '')
    """
    text = re.sub(r"[{}~^.]|\\cdot", " ", words.casefold())
    text = re.sub(r"\bsq(?:uare)?\s+(\S+)", r"\1 2", re.sub(r"\bcubic\s+(\S+)", r"\1 3", text))
    text = re.sub(r"\s+per\s+", "/", " ".join(text.split()))
    if text in _UNITS:
        return _UNITS[text]
    names: list[str] = []
    for piece in text.split("/"):
        found = re.fullmatch(r"([a-z]+?)\s*([23]?)", piece.strip())
        unit = found and (_UNITS.get(found[1]) or _UNITS.get(found[1].removesuffix("s")))
        if not found or not unit:
            return ""
        names.append(unit + found[2])
    return "/".join(names)
