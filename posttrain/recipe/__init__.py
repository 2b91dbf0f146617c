"""The recipe: its schema, and loading one with every error at once."""

from posttrain.curriculum import CurriculumSpec
from posttrain.recipe.export import recipe_json_schema
from posttrain.recipe.files import find, shipped_dir, shipped_files
from posttrain.recipe.judges import JudgeSpec
from posttrain.recipe.load import LoadedRecipe, load_curriculum, load_judge, load_recipe
from posttrain.recipe.problems import Problem, RecipeProblems
from posttrain.recipe.schema import Recipe

__all__ = [
    "CurriculumSpec",
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
