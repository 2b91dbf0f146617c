"""Type annotations of other packages' dataclasses -> which YAML values they take."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from posttrain.recipe.source import source_tree

ENUM_FILES = (
    "transformers/training_args.py",
    "transformers/trainer_utils.py",
    "transformers/debug_utils.py",
)

WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "dict": "a section (key: value lines)",
    "list": "a list",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class YamlType:
    """One alternative of an annotation."""

    name: str
    items: tuple[YamlType, ...] = ()
    """What a list or the values of a mapping may be; empty = anything."""
    values: tuple[str, ...] | None = None
    """An enum's values."""

    @property
    def words(self) -> str:
        """What an error message asks for; empty where YAML cannot say it."""
        if self.name == "list" and self.items:
            inside = " or ".join(item.words.removeprefix("a ") for item in self.items)
            return f"a list of {inside}"
        return WORDS.get(self.name, "")

    def takes(self, value: Any) -> bool:
        """Whether a YAML value is one of this type."""
        match self.name:
            case "any":
                return True
            case "none":
                return value is None
            case "enum":
                return isinstance(value, str) and value in (self.values or ())
            case "int":
                return isinstance(value, int) and not isinstance(value, bool)
            case "float":
                return isinstance(value, int | float) and not isinstance(value, bool)
            case "str":
                return isinstance(value, str)
            case "bool":
                return isinstance(value, bool)
            case "false":
                return value is False
            case "list":
                return isinstance(value, list) and self._inside(cast("list[Any]", value))
            case "dict":
                return isinstance(value, dict) and self._inside(
                    list(cast("dict[str, Any]", value).values())
                )
            case _:
                return False

    def _inside(self, values: list[Any]) -> bool:
        return not self.items or all(any(k.takes(v) for k in self.items) for v in values)

    @property
    def is_open(self) -> bool:
        """Whether part of it is a type that we cannot tell."""
        return self.name == "other" or any(item.is_open for item in self.items)


def yaml_types(annotation: ast.expr) -> list[YamlType]:
    """The alternatives of an annotation; `other` = what YAML cannot say or we cannot tell."""
    found = list(_alternatives(annotation))
    # `SchedulerType | str` means: one of the scheduler's names, written as text.
    closed = any(kind.values is not None for kind in found)
    return [kind for kind in found if not (closed and kind.name == "str")]


def _alternatives(annotation: ast.expr) -> Iterator[YamlType]:
    match annotation:
        case ast.Constant(value=None):
            yield YamlType(name="none")
        case ast.Constant(value=str(text)):
            yield from _alternatives(ast.parse(text, mode="eval").body)
        case ast.BinOp(left=left, right=right, op=ast.BitOr()):
            yield from _alternatives(left)
            yield from _alternatives(right)
        case ast.Name(id="Any"):
            yield YamlType(name="any")
        case ast.Name(id=name) if name in WORDS:
            yield YamlType(name=name)
        case ast.Name(id=name):
            values = _enum_values(name)
            yield YamlType(name="other") if values is None else YamlType(name="enum", values=values)
        case ast.Subscript(value=ast.Name(id=("Optional" | "Union") as outer), slice=inner):
            for part in inner.elts if isinstance(inner, ast.Tuple) else [inner]:
                yield from _alternatives(part)
            if outer == "Optional":
                yield YamlType(name="none")
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            literals = [part.value for part in parts if isinstance(part, ast.Constant)]
            if texts := tuple(value for value in literals if isinstance(value, str)):
                yield YamlType(name="enum", values=texts)
            if False in literals:
                yield YamlType(name="false")
        case ast.Subscript(value=ast.Name(id=("list" | "List" | "Sequence")), slice=inner):
            yield YamlType(name="list", items=tuple(_alternatives(inner)))
        case ast.Subscript(value=ast.Name(id=("dict" | "Dict")), slice=ast.Tuple(elts=[_, inner])):
            yield YamlType(name="dict", items=tuple(_alternatives(inner)))
        case ast.Subscript(value=ast.Name(id=("tuple" | "Tuple")), slice=inner):
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            items = [item for part in parts for item in _alternatives(part)]
            yield YamlType(name="list", items=tuple(items))
        case _:
            yield YamlType(name="other")


@functools.cache
def _enum_values(name: str) -> tuple[str, ...] | None:
    for file in ENUM_FILES:
        for node in source_tree(file).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                if not any("Enum" in ast.dump(base) for base in node.bases):
                    return None
                assigned = [item.value for item in node.body if isinstance(item, ast.Assign)]
                return tuple(str(v.value) for v in assigned if isinstance(v, ast.Constant))
    return None
