"""Units of measure behind a number, and nouns that are none."""

from __future__ import annotations

import re

# Written forms -> one name; other words are taken for a noun and passed by.
_UNITS = {
    name: unit
    for unit, names in {
        "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre",
        "m": "m meter metre", "km": "km kilometer kilometre", "in": "inch inches",
        "ft": "ft foot feet", "yd": "yd yard", "mi": "mile mi", "mg": "mg milligram",
        "g": "g gram", "kg": "kg kilogram", "t": "tonne", "lb": "lb pound", "oz": "oz ounce",
        "ms": "ms millisecond", "s": "s sec second", "min": "min minute", "h": "h hr hour",
        "day": "day", "week": "week", "month": "month", "year": "year yr",
        "ml": "ml milliliter millilitre", "l": "l liter litre", "gal": "gallon",
        "dm": "dm decimeter decimetre", "ha": "ha hectare", "acre": "acre",
        "yuan": "yuan", "rupee": "rupee rs", "dollar": "dollar usd buck", "cent": "cent",
        "euro": "euro eur", "degree": "degree deg", "radian": "radian rad", "j": "j joule",
        "kj": "kj kilojoule", "kn": "kn", "n": "n newton", "w": "w watt", "kw": "kw",
        "v": "v volt", "hz": "hz hertz",
        "pa": "pa pascal", "km/h": "km/h kmh kph", "m/s": "m/s", "mph": "mph", "mol": "mol mole",
    }.items()
    for name in names.split()
}  # fmt: skip
# Outside of \text, other short ones are products of variables, as is a letter alone.
_PLAIN_SHORT = frozenset(
    ["cm", "mm", "km", "dm", "kg", "mg", "ml", "ft", "lb", "oz", "yd", "hr", "kw", "kj", "hz"]
)
_COMMAND = r"\\text\s*\{[^{}]*\}"
_UNIT = re.compile(
    r"(?P<value>.*?[\d})\]a-zA-Z])\s*"
    rf"(?:(?P<latex>{_COMMAND}(?:{_COMMAND}|[/^\d{{}}\s]|\\cdot)*)"
    r"|\^\\circ\s*(?:\\text\s*\{)?\s*(?P<scale>[CF]?)\s*\}?"
    r"|(?<=[\d})\]\s])(?P<plain>[A-Za-z][A-Za-z/^\d. {}]*))",
    re.DOTALL,
)
_NOUN = re.compile(r"(?:[^\W\d_]{3,}[\s-]*)+")
_VARIABLES = re.compile(r"[a-e]+|[f-h]+|[ijk]+|[k-n]+|[p-t]+|[u-z]+|[^aeiouy]+", re.IGNORECASE)


def split_unit(text: str) -> tuple[str, str]:
    r"""Return a value and its unit; words that are no unit we know are dropped, variables stay.

    >>> split_unit("3 km"), split_unit("72 clips"), split_unit("20 xy"), split_unit("9 m")
    (('3', 'km'), ('72', ''), ('20 xy', ''), ('9 m', ''))
    >>> split_unit("9 \\text{ cm}^2"), split_unit("30^\\circ"), split_unit("\\sin 30^\\circ")
    (('9', 'cm2'), ('30', 'degree'), ('\\sin 30^\\circ', ''))
    """
    found = _UNIT.fullmatch(text)
    if not found or "%" in text or re.search(r"percent|\bpct\b", text):
        return text, ""
    value = found["value"].strip()
    if found["scale"] is not None:
        angle = re.search(r"\\(?:a?rc)?(?:sin|cos|tan|cot|sec|csc)|\^\\circ", value)
        return (text, "") if angle else (value, "degree" + found["scale"])
    if found["latex"] is not None:
        words = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", found["latex"]).strip()
        known = unit_name(words)
        is_unit = known or (re.search(r"\d", value) and _NOUN.fullmatch(words))
        return (value, known) if is_unit else (text, "")
    words = found["plain"].strip()
    known, spaced = unit_name(words), not text[len(value) :].startswith(words)
    if known and (words in _PLAIN_SHORT or (spaced and len(words) > 2)):
        return value, known
    if spaced and _NOUN.fullmatch(words) and not any(map(is_variables, words.split())):
        return value, ""
    return text, ""


def is_variables(word: str) -> bool:
    """Return whether letters are a product of variables rather than a word.

    >>> [is_variables(word) for word in ("xyz", "mgh", "ABC", "clips")]
    [True, True, True, False]
    """
    return (
        len(word) < 3
        or (len(word) < 5 and _VARIABLES.fullmatch(word) is not None)
        or word.isupper()
    )


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
