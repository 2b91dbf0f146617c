"""Rows and tokens of a recipe, before anything is run.

Tokens are upper bounds: for training rows x epochs x max_length, or max_steps x batch x max_length;
for RL max_steps x completions x max_completion_length, refills left out; for an evaluation
prompts x num_generations x max_tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.recipe import LoadedRecipe
from posttrain.recipe.cross import capabilities
from posttrain.recipe.schema import Recipe

TRL_MAX_LENGTH = 1024
TRL_BATCH_SIZE = 8
TRL_EPOCHS = 3
TRL_GENERATIONS = 8
TRL_COMPLETION_LENGTH = 256
"""TRL's own defaults for keys that a trainer block leaves out."""


def estimate(loaded: LoadedRecipe) -> dict[str, Any]:
    """`rows`, `tokens` and `judge_calls`, as JSON values; None where it is not known."""
    from posttrain.data import count_rows

    recipe = loaded.recipe
    rows = count_rows(recipe, find=loaded.find)
    return {
        "rows": {name: rows[name] for name in ("sft", "rl") if getattr(recipe, name) is not None},
        "tokens": _tokens(recipe, rows),
        "judge_calls": _judge_calls(recipe, rows),
    }


def _judge_calls(recipe: Recipe, rows: Mapping[str, int | None]) -> int | None:
    """Samples, and prompts where they are judged too; None where not all are known."""
    if recipe.sft is None or recipe.sft.judge is None:
        return None
    asked = [rows["sft"]]
    if recipe.rl is not None and recipe.rl.judge_prompts:
        asked.append(rows["rl"])
    known = [num for num in asked if num is not None]
    return sum(known) if len(known) == len(asked) else None


def _tokens(recipe: Recipe, rows: Mapping[str, int | None]) -> dict[str, int | None]:
    tokens: dict[str, int | None] = {}
    if recipe.sft is not None:
        kept = rows["sft"]
        if kept is not None and recipe.sft.judge is not None:
            kept -= int(kept * recipe.sft.prune.drop_easiest)
        tokens["sft"] = _trained(recipe.sft.trainer, kept, recipe)
    if recipe.rl is not None:
        tokens["rl"] = _generated(recipe.rl.trainer, rows["rl"], recipe)
        spec = recipe.eval
        names = {name for source in recipe.rl.data for name in capabilities(source)}
        if "heldout" in spec.suites:
            held_out = spec.heldout_size * len(names)
            tokens["each evaluation"] = held_out * spec.num_generations * spec.max_tokens
    return tokens


def _trained(block: Mapping[str, Any], rows: int | None, recipe: Recipe) -> int | None:
    max_length = block.get("max_length", TRL_MAX_LENGTH) or recipe.engine.max_model_len
    max_steps = block.get("max_steps", -1)
    if max_steps > 0:
        return max_steps * _batch(block, recipe) * max_length
    return (
        None if rows is None else int(rows * block.get("num_train_epochs", TRL_EPOCHS)) * max_length
    )


def _generated(block: Mapping[str, Any], rows: int | None, recipe: Recipe) -> int | None:
    length = block.get("max_completion_length", TRL_COMPLETION_LENGTH)
    max_steps = block.get("max_steps", -1)
    if max_steps > 0:
        return max_steps * _batch(block, recipe) * length
    if rows is None:
        return None
    epochs = block.get("num_train_epochs", TRL_EPOCHS)
    return int(rows * epochs) * block.get("num_generations", TRL_GENERATIONS) * length


def _batch(block: Mapping[str, Any], recipe: Recipe) -> int:
    return (
        block.get("per_device_train_batch_size", TRL_BATCH_SIZE)
        * block.get("gradient_accumulation_steps", 1)
        * recipe.launch.num_processes
    )
