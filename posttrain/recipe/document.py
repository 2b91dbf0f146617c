"""YAML text -> plain values, with the line of every key; `--set` on top."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from posttrain.recipe.problems import Fault, Path, Problem, RecipeProblems, dotted, show

MAX_BYTES = 1_000_000
MAX_DEPTH = 40
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
    text = _decode(raw, file)
    root = _compose(text, file)
    if root is None:
        raise RecipeProblems([Problem(file=file, line=1, message="the file is empty")])
    if not isinstance(root, MappingNode):
        found = "a list" if isinstance(root, SequenceNode) else "a single value"
        message = f"{found} at the top: expected sections such as 'model:'"
        raise RecipeProblems([Problem(file=file, line=_line(root), message=message)])
    reader = _Reader(file)
    reader.lines[()] = _line(root)
    data = reader.mapping(root, ())
    return Document(file=file, data=data, lines=reader.lines), reader.problems


def _decode(raw: bytes, file: str) -> str:
    def stop(message: str, line: int | None = 1) -> RecipeProblems:
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


def _compose(text: str, file: str) -> Node | None:
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = MAX_DEPTH
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return yaml.compose(text)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    except ReaderError as error:
        at = error.position if isinstance(error.position, int) else 0
        message = (
            f"holds the control character U+{ord(text[at]):04X}: remove it"
            if at < len(text)
            else str(error)
        )
        problem = Problem(file=file, line=text.count("\n", 0, at) + 1, message=message)
    except MarkedYAMLError as error:
        problem = _syntax_problem(error, file)
    except (
        YAMLError,
        RecursionError,
        ValueError,
        IndexError,
        AttributeError,
        AssertionError,
    ) as error:
        # ruamel's scanner lets a few of these through on text that is far from YAML.
        problem = Problem(file=file, line=1, message=f"not YAML: {error or type(error).__name__}")
    raise RecipeProblems([problem])


def _syntax_problem(error: MarkedYAMLError, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
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
    elif (
        error.context_mark is not None and mark is not None and error.context_mark.line != mark.line
    ):
        said += f" ({error.context}, begun on line {error.context_mark.line + 1})"
    return Problem(file=file, line=line, message=f"broken YAML: {said}")


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


class _Reader:
    """Turns nodes into values; keeps lines and problems."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []
        self.num_values = 0
        self.open: set[int] = set()

    def say(self, node: Node, path: Path, message: str) -> None:
        self.problems.append(
            Problem(file=self.file, line=_line(node), key=dotted(path), message=message)
        )

    def value(self, node: Node, path: Path) -> Any:
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            message = f"its aliases write out to more than {MAX_VALUES} values"
            raise RecipeProblems([Problem(file=self.file, line=_line(node), message=message)])
        if id(node) in self.open:
            self.say(node, path, "an alias inside the value that it names")
            return None
        if isinstance(node, ScalarNode):
            return self.scalar(node, path)
        self.open.add(id(node))
        try:
            if isinstance(node, MappingNode):
                return self.mapping(node, path)
            return self.sequence(node, path)
        finally:
            self.open.discard(id(node))

    def sequence(self, node: Node, path: Path) -> list[Any]:
        self.check_tag(node, path, "seq")
        for index, item in enumerate(node.value):
            self.lines[(*path, index)] = _line(item)
        return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]

    def mapping(self, node: Node, path: Path) -> dict[str, Any]:
        self.check_tag(node, path, "map")
        values: dict[str, Any] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self.say(key_node, path, "a key must be a word, not a list or a section")
                continue
            if key_node.tag == YAML_TAG + "merge":
                merged.append(value_node)
                continue
            # Keys are text whatever they look like: `1: 0.2` means the label '1'.
            key = str(key_node.value)
            here = (*path, key)
            if key in values:
                first = self.lines[here]
                self.say(key_node, here, f"given twice, first on line {first}: keep one")
                continue
            self.lines[here] = _line(key_node)
            values[key] = self.value(value_node, here)
        for source in merged:
            self.merge(values, source, path)
        return values

    def merge(self, values: dict[str, Any], source: Node, path: Path) -> None:
        sources = source.value if isinstance(source, SequenceNode) else [source]
        for one in sources:
            if not isinstance(one, MappingNode) or id(one) in self.open:
                self.say(source, (*path, "<<"), "merges sections only")
                continue
            kept = dict(self.lines)
            for key, value in self.value(one, path).items():
                values.setdefault(key, value)
            self.lines.update(kept)

    def check_tag(self, node: Node, path: Path, expected: str) -> None:
        if node.tag != YAML_TAG + expected:
            self.say(node, path, f"the tag {node.tag} means nothing here: remove it")

    def scalar(self, node: ScalarNode, path: Path) -> Any:
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

    def integer(self, node: Node, text: str, path: Path) -> int:
        digits = text.replace("_", "").lstrip("+-")
        sign = -1 if text.startswith("-") else 1
        if digits[:2] in ("0x", "0o", "0b"):
            return sign * int(digits, 0)
        if len(digits) > 1 and digits.startswith("0"):
            plain = digits.lstrip("0") or "0"
            self.say(
                node,
                path,
                f"{text} is octal in some YAML and decimal here: write {plain}, or 0o{plain}",
            )
        return sign * int(digits)


def _float(text: str) -> float:
    plain = text.replace("_", "").lower()
    if plain.lstrip("+-") in (".inf", ".nan"):
        plain = plain.replace(".", "")
    return float(plain)


def apply_overrides(document: Document, overrides: Sequence[str]) -> list[Problem]:
    """Lay `a.b=c` settings over the document, each value read as YAML; the last one wins."""
    return [problem for override in overrides for problem in _apply(document, override)]


def _apply(document: Document, override: str) -> Iterator[Problem]:
    def wrong(message: str, key: str = "", suggestion: str | None = None) -> Problem:
        return Problem(
            file=document.file, message=message, key=key, suggestion=suggestion, override=override
        )

    name, equals, written = override.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        yield wrong("expected key.key=value")
        return
    try:
        read, problems = read_document(
            b"value: " + written.encode("utf-8", "surrogatepass"), "--set"
        )
    except RecipeProblems as error:
        yield from (wrong(problem.message, name) for problem in error.problems)
        return
    if problems or set(read.data) != {"value"}:
        messages = [problem.message for problem in problems] or ["the value is more than one value"]
        yield from (wrong(message, name) for message in messages)
        return
    here: Any = document.data
    path: Path = ()
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(here, list):
            size = len(here)  # pyright: ignore[reportUnknownArgumentType]
            if not part.isdecimal() or int(part) >= size:
                span = f"0 to {size - 1}" if size else "none: it is empty"
                yield wrong(f"{dotted(path)} is a list: take a position, {span}", name)
                return
            step: str | int = int(part)
        elif isinstance(here, dict):
            step = part
        else:
            yield wrong(f"{dotted(path)} is {show(here)}, not a section: set it as a whole", name)
            return
        path = (*path, step)
        if last:
            here[step] = read.data["value"]
            _forget(document, path)
            document.overrides[path] = override
        elif isinstance(here, dict) and here.get(step) is None:  # pyright: ignore[reportUnknownMemberType]
            here[step] = {}
            _forget(document, path)
            document.overrides[path] = override
            here = here[step]  # pyright: ignore[reportUnknownVariableType]
        else:
            here = here[step]  # pyright: ignore[reportUnknownVariableType]


def _forget(document: Document, path: Path) -> None:
    for known in (document.lines, document.overrides):
        for old in [old for old in known if old[: len(path)] == path]:
            del known[old]
