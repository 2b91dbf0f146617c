"""Find the answer in a completion and fold it for comparison."""

from __future__ import annotations

import ast
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

Form = Literal["tagged", "boxed", "hashes", "answer line", "whole text"]
"""Mark by which an answer was found."""

# Each is linear in the text, since a policy may write anything.
_HASHES = re.compile(r"^[ \t]*####[ \t]*+(\S.*)$", re.MULTILINE)
_ANSWER_LINE = re.compile(
    r"^[^\w\n]*+(?:(?:so|thus|hence|therefore)[^\w\n]++)?(?:the\s+)?(?:final\s+)?"
    r"answer(?:\s+is\b\s*+:?|\s*+[:=])[*_\s]*+(\S.*)$",
    re.MULTILINE | re.IGNORECASE,
)
_BETWEEN_BOXES = re.compile(r"[\s$,;]*(?:\\text\{\s*)?(?:and|or)?(?:\s*\})?[\s$,;]*")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+)?")
_FENCE = re.compile(
    r"^[ \t]*(?P<marks>`{3,})[ \t]*(?P<language>[\w+-]*)[^\n`]*\n"
    r"(?P<code>.*?)(?:^[ \t]*(?P=marks)[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)
_PYTHON = {"python", "python3", "py"}
_PAIRS = (('"', '"'), ("'", "'"), ("`", "`"), ("“", "”"), ("‘", "’"), ("$", "$"), ("**", "**"))  # noqa: RUF001


def final_answer(text: str) -> str:
    r"""Return the answer that the text gives, else the whole text.

    Searched in this order, the last of a kind winning: `<answer>...</answer>`, `\boxed{...}`,
    a line `#### ...`, a line that begins with `answer:` or `the answer is`.

    >>> final_answer("3 + 4 = 7, so\nThe answer is 7.")
    '7.'
    >>> final_answer(r"Hence \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    return locate_answer(text)[0]


def locate_answer(text: str) -> tuple[str, Form]:
    """Return `final_answer` and how it was marked.

    >>> locate_answer("#### 72")
    ('72', 'hashes')
    """
    tagged = _last_tagged(text)
    if tagged is not None:
        return tagged.strip(), "tagged"
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed.strip(), "boxed"
    patterns: tuple[tuple[re.Pattern[str], Form], ...] = (
        (_HASHES, "hashes"),
        (_ANSWER_LINE, "answer line"),
    )
    for pattern, form in patterns:
        if found := pattern.findall(text):
            return found[-1].rstrip("*_ \t\r").strip(), form
    return text.strip(), "whole text"


def _last_tagged(text: str) -> str | None:
    """Return the inside of the last `<answer>...</answer>`, in any case."""
    # Lower-casing may lengthen other scripts' letters: positions must stay those of the text.
    lowered = text.lower()
    if len(lowered) != len(text):
        lowered = "".join(c.lower() if c.isascii() else c for c in text)
    end = lowered.rfind("</answer>")
    start = lowered.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end] if start >= 0 else None


def _last_boxed(text: str) -> str | None:
    """Return the inside of the last `\\boxed{...}` whose braces close."""
    start = text.rfind("\\boxed{")
    end = _closing(text, start + len("\\boxed{")) if start >= 0 else None
    return None if end is None else text[start + len("\\boxed{") : end]


def last_boxed_run(text: str) -> list[str]:
    """Return the insides of the last boxes with only commas, `and`, `or` and `$` between them.

    >>> last_boxed_run("\\\\boxed{7}. So $\\\\boxed{1}$ and $\\\\boxed{2}$")
    ['1', '2']
    """
    run: list[str] = []
    stop = len(text)
    while (start := text.rfind("\\boxed{", 0, stop)) >= 0 and len(run) < 20:
        begin = start + len("\\boxed{")
        end = _closing(text, begin)
        if end is None or (run and not _BETWEEN_BOXES.fullmatch(text[end + 1 : stop])):
            break
        run.insert(0, text[begin:end].strip())
        stop = start
    return run


def _closing(text: str, begin: int) -> int | None:
    """Return where the brace opened just before `begin` closes."""
    depth = 1
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return None


def tidy(text: str) -> str:
    """Strip outer whitespace, one closing period, and paired quotes or dollar signs.

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
