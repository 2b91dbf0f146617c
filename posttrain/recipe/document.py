"""A YAML file as plain values, with the file and line of every key."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import RoundTripConstructor, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from posttrain.recipe.problems import KeyPath, Mistake, Problem, RecipeProblems, dotted, show

MAX_BYTES = 1_000_000
MAX_DEPTH = 40
MAX_VALUES = 50_000
"""Values of a document whose aliases are written out; one with more is an attack, not a recipe."""
MAX_INTEGER = 10**18
_TAG = "tag:yaml.org,2002:"
_NOT_YAML = (YAMLError, RecursionError, ValueError, IndexError, AttributeError, AssertionError,
             TypeError, KeyError)  # fmt: skip
"""Exceptions that ruamel raises on text that is far from YAML."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """The values of a YAML file and of the files it names, and where each was written."""

    file: str
    """Name of the file as the user gave it."""
    data: dict[str, Any]
    lines: dict[KeyPath, int]
    """Lines of keys and list items, counted from 1."""
    overrides: dict[KeyPath, str] = field(default_factory=dict[KeyPath, str])
    """Values that `--set` gave -> its argument."""
    included: dict[KeyPath, str] = field(default_factory=dict[KeyPath, str])
    """Values that another file holds -> that file."""

    def locate(self, mistake: Mistake) -> Problem:
        """Add the file and line of the mistake's key, or of the nearest section around it."""
        path = mistake.path
        inside = [at for at in self.included if len(at) < len(path) and path[: len(at)] == at]
        start = max(map(len, inside), default=0)
        line, override = 1, None
        for end in range(len(path), start - 1, -1):
            at = path[:end]
            if at in self.overrides and not start:
                override = self.overrides[at]
                break
            if at in self.lines and (end > start or not start):
                line = self.lines[at]
                break
        return Problem(
            file=self.included[path[:start]] if start else self.file,
            line=line,
            key=dotted(path[start:]),
            message=mistake.message,
            suggestion=mistake.suggestion,
            override=override,
        )

    def include(self, path: KeyPath, other: Document) -> None:
        """Replace the value at `path`, the name of a file, by what that file holds."""
        section: Any = self.data
        for part in path[:-1]:
            section = section[part]
        section[path[-1]] = other.data
        self.included[path] = other.file
        self.lines.update({(*path, *at): line for at, line in other.lines.items() if at})

    def is_from_override(self, path: KeyPath) -> bool:
        """Return whether `--set` gave the value at `path`."""
        return any(path[:end] in self.overrides for end in range(len(path) + 1))


def read_file(file: Path, shown: str) -> tuple[Document, list[Problem]]:
    """Read a YAML file that the user knows as `shown`; see `read_document`."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        problem = Problem(file=shown, message=f"cannot be read: {error.strerror or error}")
        raise RecipeProblems([problem]) from error
    return read_document(raw, shown)


def read_document(raw: bytes, file: str) -> tuple[Document, list[Problem]]:
    """Read YAML 1.2 and list what is wrong in it; raise RecipeProblems where that ends reading."""
    text = _decode(raw, file)
    constructed, repeated = _parse(text, file)
    if constructed is None:
        raise RecipeProblems([Problem(file=file, line=1, message="the file is empty")])
    if not isinstance(constructed, CommentedMap):
        found = "a list" if isinstance(constructed, CommentedSeq) else "a single value"
        message = f"{found} at the top: expected sections such as 'model:'"
        raise RecipeProblems([Problem(file=file, line=1, message=message)])
    reader = _PlainValues(file, text.splitlines(), repeated)
    data = reader.mapping(constructed, ())
    return Document(file=file, data=data, lines=reader.lines), reader.problems


def as_map(value: Any) -> dict[str, Any]:
    """Return the value where it is a section, else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return the value where it is a list, else an empty one."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def _decode(raw: bytes, file: str) -> str:
    """Return the text; raise RecipeProblems unless it is UTF-8 of a reasonable size."""

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


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Stands where a value cannot be constructed, so that reading goes on."""

    message: str


Repeated = dict[int, list[tuple[str, int]]]
"""id of a mapping -> the keys that it holds once more, each with its line."""


_Safe: Any = SafeConstructor


class _Constructor(RoundTripConstructor):
    """Mappings and lists that know their lines, of plain scalars; keys are text, as written."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        cast("Any", super()).__init__(*args, **kwargs)
        self.repeated: Repeated = {}

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node in cast("Any", self).recursive_objects:
            return _Unreadable("an alias inside the value that it names")
        try:
            return cast("Any", super()).construct_object(node, deep)
        except (ValueError, KeyError):
            tag = str(node.tag).removeprefix(_TAG)
            return _Unreadable(f"{show(node.value)} cannot be read as {tag}")

    def flatten_mapping(self, node: Any) -> Any:
        merged = cast("Any", super()).flatten_mapping(node)
        for key_node, _ in node.value:
            if key_node.id == "scalar":
                key_node.tag = f"{_TAG}str"  # `1: 0.2` means the label '1'
        return merged

    def check_mapping_key(
        self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any
    ) -> bool:
        if key in mapping:
            line = int(key_node.start_mark.line) + 1
            self.repeated.setdefault(id(mapping), []).append((key, line))
            return False
        return True


for _name, _construct in (
    ("int", _Safe.construct_yaml_int),
    ("float", _Safe.construct_yaml_float),
    ("bool", _Safe.construct_yaml_bool),
    ("timestamp", _Safe.construct_yaml_str),
):
    cast("Any", _Constructor).add_constructor(_TAG + _name, _construct)


def _parse(text: str, file: str) -> tuple[Any, Repeated]:
    yaml: Any = YAML(typ="rt", pure=True)
    yaml.max_depth = MAX_DEPTH
    yaml.Constructor = _Constructor
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about anchors defined twice, which YAML allows
            return yaml.load(text), yaml.constructor.repeated
    except ReaderError as error:
        at = int(cast("Any", error).position)
        message = f"holds the control character U+{ord(text[at]):04X}: remove it"
        problem = Problem(file=file, line=text.count("\n", 0, at) + 1, message=message)
    except MarkedYAMLError as error:
        problem = _syntax_problem(error, file)
    except _NOT_YAML as error:
        problem = Problem(file=file, line=1, message=f"not YAML: {error or type(error).__name__}")
    raise RecipeProblems([problem])


def _syntax_problem(error: Any, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line = 1 if mark is None else int(mark.line) + 1
    said = str(error.problem or error.context or "cannot be read")
    if "found another document" in said:
        said = "a second document ('---'): a recipe is one document"
    elif r"'\t'" in said:
        said = "a tab where YAML wants spaces: indent with spaces"
    elif "maximum depth" in said:
        said = f"nested deeper than {MAX_DEPTH} levels"
    elif "mapping values are not allowed" in said:
        said = "a ':' where no key can stand: check the indentation, or put the text in quotes"
    elif error.context_mark is not None and error.context_mark.line + 1 != line:
        said += f" ({error.context}, begun on line {error.context_mark.line + 1})"
    return Problem(file=file, line=line, message=f"broken YAML: {said}")


class _PlainValues:
    """Turns what ruamel constructed into dicts and lists; collects lines and problems."""

    def __init__(self, file: str, rows: list[str], repeated: Repeated) -> None:
        self.file = file
        self.rows = rows
        self.repeated = repeated
        self.lines: dict[KeyPath, int] = {(): 1}
        self.problems: list[Problem] = []
        self.num_values = 0

    def say(self, path: KeyPath, message: str, line: int | None = None) -> None:
        at = self.lines.get(path, 1) if line is None else line
        self.problems.append(Problem(file=self.file, line=at, key=dotted(path), message=message))

    def value(self, value: Any, path: KeyPath, line: int, column: int) -> Any:
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            message = f"its aliases write out to more than {MAX_VALUES} values"
            at = self.lines[path[:1]]
            raise RecipeProblems([Problem(file=self.file, line=at, message=message)])
        if (tag := getattr(getattr(value, "tag", None), "value", None)) is not None:
            self.say(path, f"the tag {tag} means nothing here: remove it")
            return None
        if isinstance(value, CommentedMap):
            return self.mapping(value, path)
        if isinstance(value, CommentedSeq):
            return self.sequence(value, path)
        if isinstance(value, _Unreadable):
            self.say(path, value.message)
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            return self.integer(value, path, self.rows[line][column:])
        if isinstance(value, str):
            return str(value)
        if value is None or isinstance(value, bool | float):
            return value
        self.say(path, "is no text, number, list or section")
        return None

    def sequence(self, values: Any, path: KeyPath) -> list[Any]:
        marks = [values.lc.data[index] for index in range(len(values))]
        for index, (line, _) in enumerate(marks):
            self.lines[(*path, index)] = line + 1
        return [
            self.value(value, (*path, index), *marks[index]) for index, value in enumerate(values)
        ]

    def mapping(self, values: Any, path: KeyPath) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        marks = dict(_marks(values))
        for key, value in values.items():
            line = marks[key][0] + 1
            if not isinstance(key, str):
                self.say(path, "a key must be a word, not a list or a section", line)
                continue
            here = (*path, str(key))
            self.lines[here] = line
            plain[str(key)] = self.value(value, here, *marks[key][2:])
        for key, line in self.repeated.get(id(values), []):
            here = (*path, key)
            self.say(here, f"given twice, first on line {self.lines[here]}: keep one", line)
        return plain

    def integer(self, value: int, path: KeyPath, written: str) -> int:
        if abs(value) >= MAX_INTEGER:
            self.say(path, "too large a number")
        elif re.match(r"[-+]?0\d", written):
            message = f"octal in some YAML and decimal here: write {value}, or 0o{abs(value)}"
            self.say(path, message)
        return value


def _marks(values: Any) -> Iterator[tuple[Any, list[int]]]:
    """Yield each key of a mapping with the line and column of it and of its value.

    Of the mappings merged into it, the last one comes first: later items replace earlier ones.
    """
    for merged in reversed(list(values.merge)):
        yield from _marks(merged)
    yield from cast("Mapping[Any, list[int]]", values.lc.data or {}).items()
