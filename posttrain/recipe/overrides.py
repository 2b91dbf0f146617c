"""Lay the settings of `--set a.b=c` over a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from posttrain.recipe.document import Document, read_document
from posttrain.recipe.problems import KeyPath, Problem, RecipeProblems, dotted, show


def apply_overrides(document: Document, overrides: Sequence[str]) -> list[Problem]:
    """Set `a.b=c` in the document, each value read as YAML; the last one wins."""
    return [problem for override in overrides for problem in _apply(document, override)]


def _apply(document: Document, override: str) -> Iterator[Problem]:
    def wrong(message: str, key: str = "") -> Problem:
        return Problem(file=document.file, message=message, key=key, override=override)

    name, equals, written = override.partition("=")
    name = name.strip()
    parts = name.split(".")
    if not equals or not all(parts):
        yield wrong("expected key.key=value")
        return
    try:
        read, problems = read_document(b"value: " + written.encode("utf-8", "replace"), "--set")
    except RecipeProblems as error:
        yield from (wrong(problem.message, name) for problem in error.problems)
        return
    if problems or set(read.data) != {"value"}:
        messages = [problem.message for problem in problems] or ["more than one value"]
        yield from (wrong(message, name) for message in messages)
        return
    here: Any = document.data
    path: KeyPath = ()
    for depth, part in enumerate(parts, start=1):
        step, complaint = _step(here, part, path)
        if complaint:
            yield wrong(complaint, name)
            return
        path = (*path, step)
        new = isinstance(here, dict) and cast("dict[str, Any]", here).get(str(step)) is None
        if depth == len(parts) or new:
            cast("Any", here)[step] = read.data["value"] if depth == len(parts) else {}
            _now_from(document, path, override)
        here = cast("Any", here)[step]


def _step(here: Any, part: str, path: KeyPath) -> tuple[str | int, str]:
    """Return the key or position that `part` means, and what is wrong with it."""
    if isinstance(here, dict):
        return part, ""
    if not isinstance(here, list):
        return part, f"{dotted(path)} is {show(here)}, not a section: set it as a whole"
    size = len(cast("list[Any]", here))
    if part.isascii() and part.isdigit() and len(part) < 6 and int(part) < size:
        return int(part), ""
    span = f"0 to {size - 1}" if size else "and this one is empty"
    return part, f"{dotted(path)} is a list: take a position, {span}"


def _now_from(document: Document, path: KeyPath, override: str) -> None:
    """Forget where the value at `path` stood before."""
    for known in (document.lines, document.overrides):
        for old in [old for old in known if old[: len(path)] == path]:
            del known[old]
    document.overrides[path] = override
