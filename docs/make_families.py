"""Write posttrain/recipe/families.json from the installed reasoning-gym: `make docs`."""

from __future__ import annotations

import json
import types
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from reasoning_gym.factory import DATASETS, create_curriculum, has_curriculum

FILE = Path(__file__).parent.parent / "posttrain" / "recipe" / "families.json"


def text() -> str:
    """Return the file: one line per family, with its number of levels and the types of its keys."""
    lines = [
        f"{json.dumps(name)}: {json.dumps(_family(name, config))}"
        for name, (_, config) in sorted(DATASETS.items())
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _family(name: str, config: Any) -> dict[str, Any]:
    levels = 0
    if has_curriculum(name):
        attributes = create_curriculum(name).attributes.values()
        levels = max(len(attribute.levels) for attribute in attributes)
    hints = get_type_hints(config)
    return {"levels": levels, "keys": {f.name: _type(hints[f.name]) for f in fields(config)}}


def _type(hint: Any) -> str | list[str]:
    """Name a type as posttrain/recipe/families.py does; the choices where there are only some."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return list(inner)
    if origin in (Union, types.UnionType) and type(None) in inner and len(inner) == 2:
        found = _type(inner[0])
        return f"{found} or null" if isinstance(found, str) else "any"
    if hint in (int, float, bool, str):
        return hint.__name__
    if inner and set(inner) - {Ellipsis} == {str}:
        return "list of str"
    return "list of float" if hint == list[float] else "any"


if __name__ == "__main__":
    FILE.write_text(text())
