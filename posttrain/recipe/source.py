"""Dataclasses of installed packages, read from their source with `ast`; nothing is imported."""

from __future__ import annotations

import ast
import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import SetupError


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceField:
    """One field of a dataclass, as its source writes it."""

    name: str
    annotation: ast.expr
    choices: tuple[str, ...] | None
    """`choices` of its metadata."""
    default: Any
    """A constant default, or None where it is computed."""


@functools.cache
def package_folder(package: str) -> Path:
    """The folder that holds an installed package's folder; raises SetupError."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SetupError(f"the package {package} is not installed", hint="make env")
    return Path(spec.origin).parent.parent


@functools.cache
def source_tree(file: str) -> ast.Module:
    """The parsed source of `package/module.py`; raises SetupError where it is not there."""
    package = file.split("/", 1)[0]
    try:
        return ast.parse((package_folder(package) / file).read_text(encoding="utf-8"))
    except OSError as error:
        message = f"the installed {package} has no {file}: posttrain does not know this version"
        raise SetupError(message, hint="make env") from error


def class_fields(file: str, name: str) -> dict[str, SourceField]:
    """Every field of a dataclass in `package/module.py`, inherited ones included."""
    tree = source_tree(file)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    body = classes[name]
    fields: dict[str, SourceField] = {}
    for base in body.bases:
        if isinstance(base, ast.Name):
            fields |= class_fields(
                file if base.id in classes else _imported_from(tree, file, base.id), base.id
            )
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if "ClassVar" in ast.dump(node.annotation):
                continue
            fields[node.target.id] = SourceField(
                name=node.target.id,
                annotation=node.annotation,
                choices=_choices(node.value),
                default=_default(node.value),
            )
    return fields


def _imported_from(tree: ast.Module, file: str, name: str) -> str:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            module = node.module or ""
            if node.level:
                return f"{file.rsplit('/', node.level)[0]}/{module.replace('.', '/')}.py"
            if module == "transformers":  # its lazy __init__ names no file
                return "transformers/training_args.py"
            return f"{module.replace('.', '/')}.py"
    raise AssertionError(f"{name} is not imported in {file}")


def _field_keyword(value: ast.expr | None, keyword: str) -> ast.expr | None:
    if not (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Name)
        and value.func.id == "field"
    ):
        return None
    return next((k.value for k in value.keywords if k.arg == keyword), None)


def _choices(value: ast.expr | None) -> tuple[str, ...] | None:
    metadata = _field_keyword(value, "metadata")
    if not isinstance(metadata, ast.Dict):
        return None
    for key, listed in zip(metadata.keys, metadata.values, strict=True):
        if (
            isinstance(key, ast.Constant)
            and key.value == "choices"
            and isinstance(listed, ast.List)
        ):
            return tuple(str(e.value) for e in listed.elts if isinstance(e, ast.Constant))
    return None


def _default(value: ast.expr | None) -> Any:
    plain = value if not isinstance(value, ast.Call) else _field_keyword(value, "default")
    try:
        return None if plain is None else ast.literal_eval(plain)
    except ValueError:
        return None
