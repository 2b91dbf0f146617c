"""The recipe: its schema, and loading one with every error at once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import TypeAdapter

from posttrain.curriculum import AnyCurriculumSpec, CurriculumSpec
from posttrain.recipe.files import find, shipped_dir, shipped_files
from posttrain.recipe.judges import JudgeSpec
from posttrain.recipe.load import LoadedRecipe, load_curriculum, load_judge, load_recipe
from posttrain.recipe.problems import Problem, RecipeProblems
from posttrain.recipe.schema import Recipe

__all__ = [
    "CurriculumSpec",
    "FileKind",
    "JudgeSpec",
    "LoadedRecipe",
    "Problem",
    "Recipe",
    "RecipeProblems",
    "find",
    "load_curriculum",
    "load_judge",
    "load_recipe",
    "recipe_json_schema",
    "shipped_dir",
    "shipped_files",
]

FileKind = Literal["recipe", "judge", "curriculum"]


def recipe_json_schema(kind: FileKind = "recipe") -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of one kind of file, by which editors check it."""
    kinds: dict[FileKind, Any] = {
        "recipe": Recipe,
        "judge": JudgeSpec,
        "curriculum": AnyCurriculumSpec,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **TypeAdapter[Any](kinds[kind]).json_schema(by_alias=True),
        "title": f"posttrain {kind}",
    }
