"""reasoning-gym families and their levels, checked against the installed package's source."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.recipe.annotations import yaml_types
from posttrain.recipe.document import as_list, as_map
from posttrain.recipe.problems import Fault, Path, nearest, show
from posttrain.recipe.source import SourceField, class_fields, package_folder, source_tree
from posttrain.recipe.trainer import fit_value

OURS = {
    "size": "set size beside reasoning_gym",
    "seed": "set seed at the top of the recipe",
}


@functools.cache
def families() -> dict[str, str]:
    """Every family of the installed reasoning-gym -> the `package/module.py` that registers it."""
    root = package_folder("reasoning_gym")
    found: dict[str, str] = {}
    for file in sorted((root / "reasoning_gym").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "register_dataset(" not in text:
            continue
        name = re.search(r'^DATASET_NAME\s*=\s*"(\w+)"', text, re.MULTILINE)
        name = name or re.search(r'^register_dataset\(\s*"(\w+)"', text, re.MULTILINE)
        if name:
            found[name[1]] = file.relative_to(root).as_posix()
    return found


def family_fields(family: str) -> dict[str, SourceField] | None:
    """The configuration keys of one family; None where its source is written in another way."""
    file = families()[family]
    for node in source_tree(file).body:
        match node:
            case ast.Expr(
                value=ast.Call(
                    func=ast.Name(id="register_dataset"), args=[_, _, ast.Name(id=config), *_]
                )
            ):
                return class_fields(file, config)
            case _:
                continue
    return None


def num_levels(family: str) -> int | None:
    """How many levels the family's curriculum has; 0 where it has none, None where code says it."""
    tree = source_tree(families()[family])
    registered = [
        node.value.args[3:] or [k.value for k in node.value.keywords if k.arg == "curriculum_cls"]
        for node in tree.body
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "register_dataset"
    ]
    if not registered or not registered[0]:
        return 0
    (named,) = registered[0]
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and ast.unparse(named) == node.name:
            listed = [k.value for k in ast.walk(node) if isinstance(k, ast.keyword)
                      and k.arg == "levels"]  # fmt: skip
            lists = [one for one in listed if isinstance(one, ast.List | ast.Tuple)]
            return max((len(one.elts) for one in lists), default=0) if lists == listed else None
    return None


def family_faults(data: Any, path: Path) -> Iterator[Fault]:
    """What is wrong with a `reasoning_gym` value of the right shape: unknown families and keys."""
    levels = as_map(data)
    for index, name in enumerate(as_list(data) or levels):
        here = (*path, name if levels else index)
        level = levels.get(name)
        if name not in families():
            message = f"reasoning-gym has no family {name!r}"
            yield Fault(path=here, message=message, suggestion=nearest(name, families()))
        elif level:
            yield from _level_faults(name, level, here)


def span_faults(data: Any, levels: Mapping[str, Any], path: Path) -> Iterator[Fault]:
    """What is wrong with `levels` beside a `reasoning_gym` value: families that lack them."""
    for family in as_list(data) or as_map(data):
        known = isinstance(family, str) and family in families()
        count = num_levels(family) if known else None
        if count == 0:
            message = f"{family} has no curriculum of its own: leave levels out"
            yield Fault(path=path, message=message)
        for key in ("start", "max") if count else ():
            level = levels.get(key)
            if isinstance(level, int) and level >= (count or 0):
                message = f"{family} has the levels 0 to {(count or 0) - 1}, not {level}"
                yield Fault(path=(*path, key), message=message)


def _level_faults(family: str, level: Mapping[str, Any], path: Path) -> Iterator[Fault]:
    fields = family_fields(family)
    if fields is None:
        return
    keys = sorted({*fields, "level"} - set(OURS))
    for key, value in level.items():
        here = (*path, key)
        if key == "level" and key not in fields:
            yield from _number_faults(family, value, here)
        elif key in OURS:
            yield Fault(path=here, message=f"posttrain sets this itself: {OURS[key]}")
        elif key not in fields:
            near = nearest(key, keys)
            listed = "" if near else f"; {family} takes {', '.join(keys)}"
            yield Fault(path=here, message=f"unknown key{listed}", suggestion=near)
        else:
            kinds = yaml_types(fields[key].annotation)
            found = fit_value(here, kinds, None, value)
            if isinstance(found, Fault) and not any(kind.is_open for kind in kinds):
                yield found


def _number_faults(family: str, level: Any, path: Path) -> Iterator[Fault]:
    """What is wrong with a level that is given by its number."""
    count = num_levels(family)
    if count == 0:
        message = f"{family} has no curriculum of its own: set its keys instead"
        yield Fault(path=path, message=message)
    elif isinstance(level, bool) or not isinstance(level, int) or level < 0:
        yield Fault(path=path, message=f"expected a whole number from 0, found {show(level)}")
    elif count is not None and level >= count:
        yield Fault(path=path, message=f"{family} has the levels 0 to {count - 1}, not {level}")
