"""Check reasoning-gym families, their keys and their levels.

What families there are stands in families.json, written by docs/make_families.py.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import create_model

from posttrain.recipe.check import validate
from posttrain.recipe.document import as_list, as_map
from posttrain.recipe.problems import KeyPath, Mistake, nearest, show
from posttrain.spec import Spec

TYPES: Mapping[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "int or null": int | None,
    "str or null": str | None,
    "list of str": list[str],
    "list of str or null": list[str] | None,
    "list of float": list[float],
    "any": Any,
}
"""Types in families.json; a list there holds the only values that a key takes."""

_RESERVED = {
    "size": "set size beside reasoning_gym",
    "seed": "set seed at the top of the recipe",
}


class _FamilyKeys(Spec):
    @classmethod
    def reserved(cls, key: str) -> str | None:
        return _RESERVED.get(key)


@functools.cache
def families() -> dict[str, dict[str, Any]]:
    """Return every family with its number of `levels` and the types of its `keys`."""
    return json.loads(Path(__file__).with_name("families.json").read_text(encoding="utf-8"))


def check_families(data: Any, path: KeyPath) -> Iterator[Mistake]:
    """Yield what is wrong with a `reasoning_gym` value: unknown families, and their keys."""
    names = as_list(data) or as_map(data)
    if not all(isinstance(name, str) for name in names):
        return
    for index, name in enumerate(names):
        here = (*path, index if isinstance(data, list) else name)
        if name not in families():
            message = f"reasoning-gym has no family {name!r}"
            yield Mistake(path=here, message=message, suggestion=nearest(name, families()))
        elif given := as_map(as_map(data).get(name)):
            yield from _check_keys(name, given, here)


def check_levels(data: Any, levels: Mapping[str, Any], path: KeyPath) -> Iterator[Mistake]:
    """Yield what is wrong with `levels` beside a `reasoning_gym` value."""
    for name in as_list(data) or as_map(data):
        if not isinstance(name, str) or name not in families():
            continue
        count = families()[name]["levels"]
        if not count:
            message = f"{name} has no curriculum of its own: leave levels out"
            yield Mistake(path=path, message=message)
        for key in ("start", "max") if count else ():
            level = levels.get(key)
            if isinstance(level, int) and level >= count:
                message = f"{name} has the levels 0 to {count - 1}, not {level}"
                yield Mistake(path=(*path, key), message=message)


def _check_keys(name: str, given: dict[str, Any], path: KeyPath) -> Iterator[Mistake]:
    keys = families()[name]["keys"]
    by_number = "level" not in keys
    if by_number and "level" in given:
        yield from _check_level(name, given["level"], (*path, "level"))
    types: dict[str, Any] = {
        key: (TYPES[kind] if isinstance(kind, str) else Literal[tuple(kind)], None)
        for key, kind in keys.items()
        if key not in _RESERVED
    }
    if by_number and (families()[name]["levels"] or "level" in given):
        types["level"] = (Any, None)
    section: Any = create_model(name, __base__=_FamilyKeys, **types)
    for mistake in validate(section, given, {})[1]:
        yield dataclasses.replace(mistake, path=(*path, *mistake.path))


def _check_level(name: str, level: Any, path: KeyPath) -> Iterator[Mistake]:
    count = families()[name]["levels"]
    if not count:
        message = f"{name} has no curriculum of its own: set its keys instead"
        yield Mistake(path=path, message=message)
    elif isinstance(level, bool) or not isinstance(level, int) or level < 0:
        yield Mistake(path=path, message=f"expected a whole number from 0, found {show(level)}")
    elif level >= count:
        message = f"{name} has the levels 0 to {count - 1}, not {level}"
        yield Mistake(path=path, message=message)
