"""A document as a recipe, a judge or a curriculum: every rule of the schema and of TRL at once."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from posttrain.curriculum import AnyCurriculumSpec
from posttrain.recipe.check import expected_instead, key_places, validate
from posttrain.recipe.cross import cross_faults
from posttrain.recipe.document import Document, as_list, as_map
from posttrain.recipe.judges import JudgeSpec
from posttrain.recipe.problems import Fault, Path, nearest, show
from posttrain.recipe.schema import Recipe
from posttrain.recipe.tasks import family_faults, span_faults
from posttrain.recipe.trainer import CONFIG_CLASSES, check_trainer, managed, trainer_fields


def check_recipe(document: Document) -> tuple[Recipe | None, list[Fault]]:
    """The recipe, or None and all that is wrong with it; files it names are not looked at."""
    data = dict(document.data)
    faults: list[Fault] = []
    for stage in CONFIG_CLASSES:
        section = as_map(data.get(stage))
        if isinstance(section.get("trainer"), dict):
            block, found = check_trainer(stage, section["trainer"], _recipe_places())
            data[stage] = {**section, "trainer": block}
            faults += found
    recipe, found = validate(Recipe, data, _recipe_places())
    faults += found
    for path, source in data_sources(data):
        faults += _family_faults(source.get("reasoning_gym"), (*path, "reasoning_gym"))
        if isinstance(source.get("levels"), dict):
            faults += span_faults(source.get("reasoning_gym"), source["levels"], (*path, "levels"))
    unsound = frozenset(str(fault.path[0]) for fault in faults if fault.path)
    probe = recipe or _probe(data, unsound)
    if probe is not None:
        faults += cross_faults(probe, unsound)
    return (None if faults else recipe), faults


def check_kind(document: Document, union: Any) -> tuple[Any, list[Fault]]:
    """A judge or a curriculum by its `kind`, or None and all that is wrong with it."""
    variants = variants_of(union)
    kind = document.data.get("kind")
    listed = ", ".join(variants)
    if "kind" not in document.data:
        return None, [Fault(path=("kind",), message=f"is required and not given: one of {listed}")]
    if not isinstance(kind, str):
        return None, [Fault(path=("kind",), message=expected_instead(f"one of {listed}", kind))]
    if kind not in variants:
        message = f"expected one of {listed}, found {show(kind)}"
        return None, [Fault(path=("kind",), message=message, suggestion=nearest(kind, variants))]
    return validate(variants[kind], document.data, key_places(variants[kind], {}))


def data_sources(data: Mapping[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every entry of a `data` list in unchecked values, with its place."""
    lists: list[tuple[Path, Any]] = [
        (("sft", "data"), as_map(data.get("sft")).get("data")),
        (("rl", "data"), as_map(data.get("rl")).get("data")),
    ]
    for index, suite in enumerate(as_list(as_map(data.get("eval")).get("suites"))):
        lists.append((("eval", "suites", index, "data"), as_map(suite).get("data")))
    for path, sources in lists:
        for index, source in enumerate(as_list(sources)):
            yield (*path, index), as_map(source)


def variants_of(union: Any) -> dict[str, type[BaseModel]]:
    """The name of each kind -> its section class."""
    members = get_args(get_args(union)[0])
    return {get_args(member.model_fields["kind"].annotation)[0]: member for member in members}


@functools.cache
def _recipe_places() -> dict[str, list[Path]]:
    trainers: dict[Path, list[str]] = {
        (stage, "trainer"): [key for key in trainer_fields(stage) if managed(stage, key) is None]
        for stage in CONFIG_CLASSES
    }
    places = key_places(Recipe, trainers)
    titles = (("the judge's file", JudgeSpec), ("the curriculum's file", AnyCurriculumSpec))
    for title, union in titles:
        for model in variants_of(union).values():
            for key in model.model_fields.keys() - {"kind"}:
                places.setdefault(key, []).append((title,))
    return places


def _family_faults(value: Any, path: Path) -> Iterator[Fault]:
    well_formed = all(isinstance(name, str) for name in as_list(value)) and all(
        isinstance(level, dict) for level in as_map(value).values()
    )
    if value and well_formed and isinstance(value, dict | list):
        yield from family_faults(value, path)


def _probe(data: Mapping[str, Any], unsound: frozenset[str]) -> Recipe | None:
    """The sound sections alone, so that clashes between them are found in the same pass."""
    sound = {key: value for key, value in data.items() if key not in unsound}
    recipe, _ = validate(Recipe, {"model": {"base": "-"}, **sound}, {})
    return recipe
