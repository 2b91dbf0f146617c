"""Define what may be wrong in a recipe, and the error that lists all of it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from posttrain.errors import RecipeError

KeyPath = tuple[str | int, ...]
"""Keys and list positions that lead to a value of a document."""

SHOWN = 40
"""Problems that are printed; the others are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """Something wrong at a key of a document, before its line is known.

    >>> Mistake(path=("sft", "data", 0), message="is empty").path
    ('sft', 'data', 0)
    """

    path: KeyPath
    message: str
    suggestion: str | None = None
    """Name that was probably meant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something wrong, with the line to look at.

    >>> print(Problem(file="a.yaml", line=3, key="sft.dta", message="unknown", suggestion="data"))
    a.yaml:3: sft.dta: unknown (did you mean 'data'?)
    """

    file: str
    message: str
    line: int | None = None
    """Counted from 1; None where the whole file is missing or unreadable."""
    key: str = ""
    """Dotted, list positions from 0: sft.data.0.size."""
    suggestion: str | None = None
    override: str | None = None
    """Argument of `--set` that gave the value; named in place of file and line."""

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        if self.override is not None:
            where = f"--set {self.override}"
        hint = "" if self.suggestion is None else f" (did you mean {self.suggestion!r}?)"
        said = ": ".join(part for part in (where, self.key, self.message) if part) + hint
        # One line each, whatever the recipe holds; and nothing that a terminal would obey.
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in said)


class RecipeProblems(RecipeError):
    """Every problem of a recipe and of the files it names, in one error."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        assert self.problems
        lines = [str(problem) for problem in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(f"... and {len(self.problems) - SHOWN} more")
        num = len(self.problems)
        noun = "this" if num == 1 else f"these {num} problems"
        super().__init__("\n".join(lines), hint=f"correct {noun}, then: posttrain check RECIPE")


def dotted(path: Sequence[str | int]) -> str:
    """Write a path as in `--set`.

    >>> dotted(("sft", "data", 0))
    'sft.data.0'
    """
    return ".".join(str(part) for part in path)


def nearest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the word most like `word`, or None where none is.

    >>> nearest("lerning_rate", ["learning_rate", "seed"])
    'learning_rate'
    """
    by_folded = {w.lower().replace("-", "_"): w for w in words}
    found = difflib.get_close_matches(word.lower().replace("-", "_"), by_folded, 1, cutoff)
    return by_folded[found[0]] if found else None


def show(value: object) -> str:
    """Write a value for an error message: short, on one line.

    >>> show("yes"), show(None), show({"a": 1})
    ("'yes'", 'null', 'a section')
    """
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    return json.dumps(value, default=str)
