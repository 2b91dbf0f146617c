"""How many rows a recipe will read, without loading them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from posttrain.data.reading import count_table
from posttrain.recipe.schema import Recipe


def count_rows(recipe: Recipe, *, find: Callable[[str], Path]) -> dict[str, int | None]:
    """Rows that sft and rl will read at most, cheaply; None where only loading would tell."""
    counts: dict[str, int | None] = {"sft": None, "rl": None}
    for section, spec in (("sft", recipe.sft), ("rl", recipe.rl)):
        total = 0
        for index, source in enumerate(spec.data if spec else ()):
            if source.path is None:
                made = source.generated.named if source.generated else source.reasoning_gym
                found = (source.size or 0) * len(made or ())
            else:
                rows = count_table(source.path, find, f"{section}.data[{index}]")
                known = [n for n in (rows, source.size) if n is not None]
                if not known:
                    break
                found = min(known)
            total += found
        else:
            counts[section] = total if spec else None
    return counts
