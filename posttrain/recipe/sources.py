"""Every place of a recipe that rows come from, and which verifiers they need."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.recipe.rows import DataSource
from posttrain.recipe.schema import Recipe


def every_source(recipe: Recipe) -> Iterator[DataSource]:
    """The sources of sft, rl and the suites of eval."""
    for section in (recipe.sft, recipe.rl):
        if section is not None:
            yield from section.data
    for suite in recipe.eval.suites:
        if suite != "heldout":
            yield from suite.data


def verifiers_of(source: DataSource) -> set[str]:
    """What decides answers to a source's rows; empty where nothing does."""
    if source.reasoning_gym is not None:
        return {"reasoning_gym"}
    if source.generated is not None:
        made = {
            "code": source.generated.python_functions,
            "instructions": source.generated.constraints,
        }
        return {verifier for verifier, asked in made.items() if asked is not None}
    return set() if source.verifier is None else {source.verifier}


def needs(recipe: Recipe, verifier: str) -> bool:
    """Whether any row of the recipe is decided by this verifier."""
    return any(verifier in verifiers_of(source) for source in every_source(recipe))
