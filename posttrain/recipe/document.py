"""A YAML file as plain values, with the line of every key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, cast

from posttrain.recipe.problems import Fault, Path, Problem, RecipeProblems, dotted, show
from posttrain.recipe.yaml_text import YamlNode, compose, decode, line_of

MAX_VALUES = 50_000
"""Aliases written out; a document past it is a bomb, not a recipe."""

YAML_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, kw_only=True)
class Document:
    """One YAML file's values and where each of them was written."""

    file: str
    """As people call it."""
    data: dict[str, Any]
    lines: dict[Path, int]
    overrides: dict[Path, str] = field(default_factory=dict[Path, str])
    """What `--set` brought in."""

    def locate(self, fault: Fault) -> Problem:
        """Give a fault the line of its key, or of the nearest section around it."""
        line = override = None
        for end in range(len(fault.path), -1, -1):
            override = self.overrides.get(fault.path[:end])
            line = self.lines.get(fault.path[:end])
            if override is not None or line is not None:
                break
        return Problem(
            file=self.file,
            line=1 if line is None else line,
            key=dotted(fault.path),
            message=fault.message,
            suggestion=fault.suggestion,
            override=override,
        )

    def came_from_override(self, path: Path) -> bool:
        """Whether the value at `path` was given by `--set`."""
        return any(path[:end] in self.overrides for end in range(len(path) + 1))


def read_document(raw: bytes, file: str) -> tuple[Document, list[Problem]]:
    """Read YAML 1.2; what can be read past is listed, what cannot be read raises RecipeProblems."""
    text = decode(raw, file)
    root = compose(text, file)
    if root is None:
        raise RecipeProblems([Problem(file=file, line=1, message="the file is empty")])
    if root.id != "mapping":
        found = "a list" if root.id == "sequence" else "a single value"
        message = f"{found} at the top: expected sections such as 'model:'"
        raise RecipeProblems([Problem(file=file, line=line_of(root), message=message)])
    reader = _Reader(file)
    reader.lines[()] = line_of(root)
    data = reader.mapping(root, ())
    return Document(file=file, data=data, lines=reader.lines), reader.problems


def read_file(file: FilePath, shown: str) -> tuple[Document, list[Problem]]:
    """`read_document` of a file that people know as `shown`."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        problem = Problem(file=shown, message=f"cannot be read: {error.strerror or error}")
        raise RecipeProblems([problem]) from error
    return read_document(raw, shown)


def as_map(value: Any) -> dict[str, Any]:
    """The value where it is a section, else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value where it is a list, else an empty one."""
    return cast("list[Any]", value) if isinstance(value, list) else []


class _Reader:
    """Turns nodes into values; keeps lines and problems."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []
        self.num_values = 0
        self.open: set[int] = set()

    def say(self, node: YamlNode, path: Path, message: str) -> None:
        self.problems.append(
            Problem(file=self.file, line=line_of(node), key=dotted(path), message=message)
        )

    def value(self, node: YamlNode, path: Path) -> Any:
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            message = f"its aliases write out to more than {MAX_VALUES} values"
            line = self.lines.get(path[:1], 1)
            raise RecipeProblems([Problem(file=self.file, line=line, message=message)])
        if id(node) in self.open:
            self.say(node, path, "an alias inside the value that it names")
            return None
        if node.id == "scalar":
            return self.scalar(node, path)
        self.open.add(id(node))
        try:
            if node.id == "mapping":
                return self.mapping(node, path)
            return self.sequence(node, path)
        finally:
            self.open.discard(id(node))

    def sequence(self, node: YamlNode, path: Path) -> list[Any]:
        self.check_tag(node, path, "seq")
        for index, item in enumerate(node.value):
            self.lines[(*path, index)] = line_of(item)
        return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]

    def mapping(self, node: YamlNode, path: Path) -> dict[str, Any]:
        self.check_tag(node, path, "map")
        values: dict[str, Any] = {}
        own: set[str] = set()
        # What is merged in comes first, so that the section's own keys win.
        for key_node, value_node in node.value:
            if key_node.tag == YAML_TAG + "merge":
                self.merge(values, value_node, path)
        for key_node, value_node in node.value:
            if key_node.tag == YAML_TAG + "merge":
                continue
            if key_node.id != "scalar":
                self.say(key_node, path, "a key must be a word, not a list or a section")
                continue
            # Keys are text whatever they look like: `1: 0.2` means the label '1'.
            key = str(key_node.value)
            here = (*path, key)
            if key in own:
                first = self.lines[here]
                self.say(key_node, here, f"given twice, first on line {first}: keep one")
                continue
            own.add(key)
            self.lines[here] = line_of(key_node)
            values[key] = self.value(value_node, here)
        return values

    def merge(self, values: dict[str, Any], source: YamlNode, path: Path) -> None:
        sources: list[YamlNode] = source.value if source.id == "sequence" else [source]
        # The first of several wins, so it is laid on last.
        for one in reversed(sources):
            if one.id != "mapping" or id(one) in self.open:
                self.say(source, (*path, "<<"), "merges sections only")
            else:
                values.update(self.value(one, path))

    def check_tag(self, node: YamlNode, path: Path, expected: str) -> None:
        if node.tag != YAML_TAG + expected:
            self.say(node, path, f"the tag {node.tag} means nothing here: remove it")

    def scalar(self, node: YamlNode, path: Path) -> Any:
        text = str(node.value)
        tag = str(node.tag).removeprefix(YAML_TAG)
        try:
            match tag:
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    return self.integer(node, text, path)
                case "float":
                    return _float(text)
                case "str" | "timestamp" | "value" | "merge":
                    return text
                case _:
                    self.say(node, path, f"the tag {node.tag} means nothing here: remove it")
        except (ValueError, KeyError):
            self.say(node, path, f"{show(text)} cannot be read as {tag}")
        return text

    def integer(self, node: YamlNode, text: str, path: Path) -> int:
        digits = text.replace("_", "").lstrip("+-")
        sign = -1 if text.startswith("-") else 1
        if len(digits) > 18:
            self.say(node, path, "too large a number")
            return 0
        if digits[:2] in ("0x", "0o", "0b"):
            return sign * int(digits, 0)
        if len(digits) > 1 and digits.startswith("0"):
            plain = digits.lstrip("0") or "0"
            message = f"{text} is octal in some YAML and decimal here: write {plain}, or 0o{plain}"
            self.say(node, path, message)
        return sign * int(digits)


def _float(text: str) -> float:
    plain = text.replace("_", "").lower()
    if plain.lstrip("+-") in (".inf", ".nan"):
        plain = plain.replace(".", "")
    return float(plain)
