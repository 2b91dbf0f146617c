"""Make the JSON schemas by which editors check recipes, judges and curricula."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import TypeAdapter

from posttrain.curriculum import AnyCurriculumSpec
from posttrain.recipe.judges import JudgeSpec
from posttrain.recipe.schema import Recipe

SchemaKind = Literal["recipe", "judge", "curriculum"]

SHIPPED_AS: dict[SchemaKind, str] = {
    "recipe": "recipes/schema.json",
    "judge": "judges/schema.json",
    "curriculum": "curricula/schema.json",
}
"""Where each stands in the repository; a test holds them to what this module makes."""


def recipe_json_schema(kind: SchemaKind = "recipe") -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of one kind of file, with a description for every key."""
    unions: dict[SchemaKind, Any] = {
        "recipe": Recipe,
        "judge": JudgeSpec,
        "curriculum": AnyCurriculumSpec,
    }
    schema = TypeAdapter[Any](unions[kind]).json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": f"posttrain {kind}",
    }
