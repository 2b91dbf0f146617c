"""Which program an answer gives."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

_FENCE = re.compile(
    r"^[ \t]*(?P<marks>`{3,})[ \t]*(?P<language>[\w+-]*)[^\n`]*\n"
    r"(?P<code>.*?)(?:^[ \t]*(?P=marks)[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)
_PYTHON = {"python", "python3", "py"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A program and where it was found."""

    program: str
    fenced: bool


def answer_program(text: str, entry_point: str | None, prefix: str) -> Answer:
    """The last fenced Python block that defines the entry point, else the last one, else the text.

    Blocks without a language count where none says Python. What comes after `prefix`, unless it
    defines the entry point anew, continues it letter for letter.

    >>> answer_program("So:\\n```python\\nx = 1\\n```\\nDone.", None, "").program
    'x = 1\\n'
    """
    blocks = [(m["language"].lower(), m["code"]) for m in _FENCE.finditer(text)]
    python = [code for language, code in blocks if language in _PYTHON]
    candidates = python or [code for language, code in blocks if not language]
    if not candidates:
        return Answer(program=_after(prefix, text, entry_point), fenced=False)
    defining = [code for code in candidates if _defines(code, entry_point)]
    return Answer(program=_after(prefix, (defining or candidates)[-1], entry_point), fenced=True)


def _after(prefix: str, code: str, entry_point: str | None) -> str:
    if not prefix:
        return code
    # A prefix ends in a head with its docstring, which is a whole function by itself.
    return f"{prefix}\n{code}" if _defines(code, entry_point) else prefix + code


def _defines(code: str, entry_point: str | None) -> bool:
    """Whether a text is Python that defines a name at its top level."""
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
