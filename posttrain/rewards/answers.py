"""Fold answers for comparison, and find the program in one."""

from __future__ import annotations

import ast
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal

_NUMBER = re.compile(r"[+-]?(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+)?")
_FENCE = re.compile(
    r"^[ \t]*(?P<marks>`{3,})[ \t]*(?P<language>[\w+-]*)[^\n`]*\n"
    r"(?P<code>.*?)(?:^[ \t]*(?P=marks)[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)
_PYTHON = {"python", "python3", "py"}
_PAIRS = (('"', '"'), ("'", "'"), ("`", "`"), ("“", "”"), ("‘", "’"), ("$", "$"), ("**", "**"))  # noqa: RUF001


def tidy(text: str) -> str:
    """Strip outer whitespace, one closing period, and paired quotes or dollar signs.

    >>> tidy('  "Paris". ')
    'Paris'
    """
    while True:
        before = text
        text = text.strip()
        if text.endswith((".", "。")) and not text.endswith("..") and len(text) > 1:
            text = text[:-1]
        for left, right in _PAIRS:
            inner = text[len(left) : -len(right)]
            if text.startswith(left) and text.endswith(right) and inner and left not in inner:
                text = inner
        if text == before:
            return text


def normalise(text: str) -> str:
    """Fold case and whitespace of the tidied text."""
    return " ".join(tidy(text).split()).casefold()


def as_number(text: str) -> Decimal | None:
    """Return the value of a plain decimal number (thousands commas allowed), else None.

    >>> as_number("1,250.0") == as_number("1250")
    True
    """
    text = tidy(text)
    if len(text) > 200 or not any("0" <= c <= "9" for c in text) or not _NUMBER.fullmatch(text):
        return None
    return Decimal(text.replace(",", ""))


def western_digits(text: str) -> str:
    """Replace the decimal digits of every script by 0 to 9.

    >>> western_digits("١٢ and ३४")
    '12 and 34'
    """
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)


def brief(text: str, limit: int = 60) -> str:
    """Shorten the text to one line of at most `limit` printable characters."""
    line = " ".join(text[: 4 * limit].split())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    if len(text) > 4 * limit and len(line) <= limit:
        line += "..."
    return line if len(line) <= limit else line[: limit - 3] + "..."


def expected_got(expected: str, got: str) -> str:
    """Return the reason of a wrong answer."""
    return f"expected {brief(expected)}, got {brief(got)}"


# ---- programs


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramAnswer:
    """A program, and whether it stood in a fenced block."""

    program: str
    fenced: bool


def answer_program(text: str, entry_point: str | None, prefix: str) -> ProgramAnswer:
    """Return the last fenced Python block that defines the entry point, else the last, else all.

    Blocks without a language count where none says Python. The answer continues `prefix` letter for
    letter, unless it defines the entry point itself.

    >>> answer_program("So:\\n```python\\nx = 1\\n```\\nDone.", None, "").program
    'x = 1\\n'
    """
    blocks = [(m["language"].lower(), m["code"]) for m in _FENCE.finditer(text)]
    python = [code for language, code in blocks if language in _PYTHON]
    candidates = python or [code for language, code in blocks if not language]
    if not candidates:
        return ProgramAnswer(program=_after(prefix, text, entry_point), fenced=False)
    defining = [code for code in candidates if _defines(code, entry_point)]
    return ProgramAnswer(
        program=_after(prefix, (defining or candidates)[-1], entry_point), fenced=True
    )


def _after(prefix: str, code: str, entry_point: str | None) -> str:
    if not prefix:
        return code
    # A prefix ends in a head with its docstring, which is a whole function by itself.
    return f"{prefix}\n{code}" if _defines(code, entry_point) else prefix + code


def _defines(code: str, entry_point: str | None) -> bool:
    """Return whether a text is Python that defines a name at its top level."""
    if entry_point is None:
        return False
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    name = entry_point.partition(".")[0]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name == name:
                return True
        elif isinstance(node, ast.Assign):
            if any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                return True
        elif isinstance(node, ast.Import | ast.ImportFrom) and any(
            (alias.asname or alias.name) == name for alias in node.names
        ):
            return True
    return False
