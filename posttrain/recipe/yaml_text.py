"""Bytes -> YAML nodes, each knowing its line; ruamel's complaints in plain words."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from posttrain.recipe.problems import Problem, RecipeProblems

MAX_BYTES = 1_000_000
MAX_DEPTH = 40

NOT_YAML = (YAMLError, RecursionError, ValueError, IndexError, AttributeError, AssertionError)
"""ruamel's scanner lets a few of these through on text that is far from YAML."""


class Mark(Protocol):
    """A place in the text; lines from 0."""

    line: int


class YamlNode(Protocol):
    """What is used of ruamel's nodes, which carry no types of their own."""

    id: str
    """scalar, sequence or mapping."""
    tag: str
    value: Any
    """Text, a list of nodes, or a list of pairs of nodes."""
    start_mark: Mark


def line_of(node: YamlNode) -> int:
    """The node's line, from 1."""
    return int(node.start_mark.line) + 1


def decode(raw: bytes, file: str) -> str:
    """The text of a file; raises RecipeProblems where it is not UTF-8 text of a fair size."""

    def stop(message: str, line: int = 1) -> RecipeProblems:
        return RecipeProblems([Problem(file=file, line=line, message=message)])

    if len(raw) > MAX_BYTES:
        raise stop(f"{len(raw)} bytes: more than a recipe can need ({MAX_BYTES})")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise stop("UTF-16 text: save the file as UTF-8")
    if (at := raw.find(b"\0")) >= 0:
        raise stop("holds a NUL byte: this is not a text file", raw.count(b"\n", 0, at) + 1)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise stop("not UTF-8 text: save the file as UTF-8", line) from error
    for number, row in enumerate(text.splitlines(), start=1):
        if row.startswith("%YAML") and row.split()[1:2] != ["1.2"]:
            raise stop("recipes are YAML 1.2: leave the %YAML line out", number)
    return text


def compose(text: str, file: str) -> YamlNode | None:
    """The root node of one YAML 1.2 document, or None where there is nothing in it."""
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.max_depth = MAX_DEPTH
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on anchors defined twice, which YAML allows
            return yaml.compose(text)
    except ReaderError as error:
        problem = _control_character(error, text, file)
    except MarkedYAMLError as error:
        problem = _syntax_problem(error, file)
    except NOT_YAML as error:
        problem = Problem(file=file, line=1, message=f"not YAML: {error or type(error).__name__}")
    raise RecipeProblems([problem])


def _control_character(error: Any, text: str, file: str) -> Problem:
    at = int(error.position)
    message = f"holds the control character U+{ord(text[at]):04X}: remove it"
    return Problem(file=file, line=text.count("\n", 0, at) + 1, message=message)


def _syntax_problem(error: Any, file: str) -> Problem:
    mark: Mark | None = error.problem_mark or error.context_mark
    begun: Mark | None = error.context_mark
    line = 1 if mark is None else mark.line + 1
    said = str(error.problem or error.context or "cannot be read")
    if "found another document" in said:
        said = "a second document ('---'): a recipe is one document"
    elif r"'\t'" in said:
        said = "a tab where YAML wants spaces: indent with spaces"
    elif "maximum depth" in said:
        said = f"nested deeper than {MAX_DEPTH} levels"
    elif "mapping values are not allowed" in said:
        said = "a ':' where no key can stand: check the indentation, or put the text in quotes"
    elif begun is not None and begun.line + 1 != line:
        said += f" ({error.context}, begun on line {begun.line + 1})"
    return Problem(file=file, line=line, message=f"broken YAML: {said}")
