"""Every place of a recipe that rows come from."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.recipe.schema import DataSource, Recipe


def data_sources(recipe: Recipe) -> Iterator[tuple[str, DataSource]]:
    """The key of each source, and the source."""
    for section in ("sft", "rl"):
        part = getattr(recipe, section)
        for number, source in enumerate(part.data if part is not None else ()):
            yield f"{section}.data.{number}", source
    for place, suite in enumerate(recipe.eval.suites):
        if not isinstance(suite, str):
            for number, source in enumerate(suite.data):
                yield f"eval.suites.{place}.data.{number}", source


def needs_sandbox(recipe: Recipe) -> bool:
    """Whether programs that the model writes will be run."""
    return any(source.verifier == "code" for _, source in data_sources(recipe))
