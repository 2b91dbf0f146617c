"""Every YAML file that comes with posttrain: sound, with its editor line and its command."""

from __future__ import annotations

import json
import shlex
from itertools import pairwise
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from posttrain.recipe import (
    FileKind,
    load_curriculum,
    load_judge,
    load_recipe,
    recipe_json_schema,
)
from posttrain.recipe.files import shipped_files

RECIPES = shipped_files("recipes")
JUDGES = shipped_files("judges")
CURRICULA = shipped_files("curricula")
BY_KIND: dict[FileKind, list[Path]] = {
    "recipe": RECIPES,
    "judge": JUDGES,
    "curriculum": CURRICULA,
}
PAIRS = [(kind, path) for kind, paths in BY_KIND.items() for path in paths]


def test_what_ships() -> None:
    assert {"tiny.yaml", "starter.yaml", "scout_lora_1x80gb.yaml"} <= {
        path.name for path in RECIPES
    }
    assert {"answer_likelihood.yaml", "difficulty_rubric.yaml"} <= {path.name for path in JUDGES}
    assert {"uniform.yaml", "adaptive.yaml"} <= {path.name for path in CURRICULA}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_is_sound(path: Path) -> None:
    assert load_recipe(path).notes == ()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_head_of_a_recipe_is_a_command_whose_settings_fit(path: Path) -> None:
    words = shlex.split(path.read_text().splitlines()[1].removeprefix("# "))
    assert words[:2] == ["posttrain", "run"]
    assert Path(words[2]).name == path.name
    settings = [after for word, after in pairwise(words) if word == "--set"]
    for setting in settings:
        key, _, value = setting.partition("=")
        assert key in {"model.base", "sft.data.0.path"}
        assert value


@pytest.mark.parametrize("path", JUDGES, ids=lambda path: path.name)
def test_judge_is_sound(path: Path) -> None:
    assert load_judge(path).kind


@pytest.mark.parametrize("path", CURRICULA, ids=lambda path: path.name)
def test_curriculum_is_sound(path: Path) -> None:
    assert load_curriculum(path).kind_name()


@pytest.mark.parametrize(("kind", "path"), PAIRS, ids=lambda value: getattr(value, "name", value))
def test_editors_can_check_it(kind: FileKind, path: Path) -> None:
    first, second = path.read_text().splitlines()[:2]
    assert first == "# yaml-language-server: $schema=schema.json"
    assert second.startswith("# ")
    schema = json.loads((path.parent / "schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(YAML(typ="safe", pure=True).load(path.read_text()), schema)


@pytest.mark.parametrize("kind", BY_KIND)
def test_the_schema_that_ships_is_the_one_the_code_has(kind: FileKind) -> None:
    shipped = json.loads((BY_KIND[kind][0].parent / "schema.json").read_text())
    assert shipped == recipe_json_schema(kind), "run make docs"


def test_the_schema_refuses_what_the_loader_refuses() -> None:
    schema = recipe_json_schema("recipe")
    for wrong in ({}, {"model": {"base": "a"}, "sede": 1}, {"model": {"base": "a"}, "seed": "1"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_every_key_of_the_schema_is_described() -> None:
    bare: list[str] = []
    for kind in BY_KIND:
        schema = recipe_json_schema(kind)
        for name, section in {"": schema, **schema.get("$defs", {})}.items():
            assert name == "" or section.get("description"), name
            for key, value in section.get("properties", {}).items():
                if not value.get("description") and "$ref" not in value and key != "kind":
                    bare.append(f"{name}.{key}")
    assert bare == []


def test_rubric_labels_are_single_characters() -> None:
    spec = load_judge(shipped_files("judges")[0].parent / "difficulty_rubric.yaml")
    assert spec.kind == "rubric"
    assert list(spec.labels) == ["1", "2", "3", "4", "5"]
    assert all(0 <= score <= 1 for score in spec.labels.values())
