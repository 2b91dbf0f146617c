"""A recipe file, the files it names and the `--set` settings -> one checked `LoadedRecipe`."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from posttrain.recipe import files
from posttrain.recipe.check import expected_instead, key_places, validate
from posttrain.recipe.cross import cross_faults, notes, quota_faults
from posttrain.recipe.document import Document, apply_overrides, read_document
from posttrain.recipe.problems import Fault, Problem, RecipeProblems, dotted, nearest, show
from posttrain.recipe.problems import Path as Place
from posttrain.recipe.schema import CurriculumSpec, JudgeSpec, Recipe
from posttrain.recipe.trainer import CONFIG_CLASSES, check_trainer, managed, trainer_fields


@dataclass(frozen=True, kw_only=True)
class LoadedRecipe:
    """A recipe that is sound, with everything it names."""

    recipe: Recipe
    """Paths absolute, name filled in, trainer numbers of the type that TRL wants."""
    path: Path
    resolved: dict[str, Any]
    """The recipe as JSON values, defaults written out, paths absolute: Recipe.model_validate takes it back."""
    written: dict[str, Any]
    """The same with names as they were written, so that it does not change with the place of the files."""
    judge: JudgeSpec | None
    curriculum: CurriculumSpec | None
    """None where there is no rl section."""
    files: Mapping[str, Path]
    """Dotted key -> the file or folder that its relative path means."""
    notes: tuple[Problem, ...]
    """What is set and has no effect; worth a warning."""

    def find(self, name: str) -> Path:
        """The data file that a `path` in this recipe means; raises FileNotFoundError."""
        return files.find(name, "data", folder=self.path.parent)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load and check everything that can be checked without a model; raises RecipeProblems with all that is wrong.

    A path that does not exist is looked for among the shipped recipes. Relative paths inside the recipe start at its
    folder, then at the shipped files; those given in `overrides` start at the working directory.
    """
    file = find_recipe(path)
    document, problems = _read(file, str(path))
    problems += apply_overrides(document, overrides)
    recipe, faults = _check(document)
    problems += [document.locate(fault) for fault in faults]
    named = _Named(document=document, folder=file.parent)
    named.collect()
    judge = named.load(("sft", "judge"), "judges", JudgeSpec)
    curriculum = named.load(("rl", "curriculum"), "curricula", CurriculumSpec)
    if recipe is not None and curriculum is not None:
        named.say_of(("rl", "curriculum"), quota_faults(recipe, curriculum))
    problems += named.problems
    if problems or recipe is None:
        raise RecipeProblems(sorted(problems, key=_order(str(path))))
    fill = {} if recipe.name else {"name": _run_name(file)}
    written = recipe.model_copy(update=fill).model_dump(mode="json", by_alias=True)
    resolved = Recipe.model_validate(written).model_dump(mode="json", by_alias=True)
    for place, found in named.found.items():
        _set(resolved, place, str(found))
    return LoadedRecipe(
        recipe=Recipe.model_validate(resolved),
        path=file,
        resolved=resolved,
        written=written,
        judge=judge,
        curriculum=curriculum,
        files={dotted(place): found for place, found in named.found.items()},
        notes=tuple(document.locate(fault) for fault in notes(recipe)),
    )


def find_recipe(path: Path) -> Path:
    """The recipe file itself, or the shipped one of that name; raises RecipeProblems."""
    if path.is_dir():
        names = ", ".join(sorted(found.name for found in path.glob("*.yaml"))) or "none"
        raise RecipeProblems(
            [Problem(file=str(path), message=f"a folder, not a recipe; YAML files in it: {names}")]
        )
    try:
        found = files.find(str(path), "recipes", folder=Path.cwd(), from_cwd=True)
    except FileNotFoundError as error:
        raise RecipeProblems(
            [Problem(file=str(path), message=str(error.strerror), suggestion=error.filename2)]
        ) from error
    if found.is_dir():
        raise RecipeProblems([Problem(file=str(path), message="a folder, not a recipe")])
    return found


def load_judge(path: Path) -> JudgeSpec:
    """Load and check one judge file; raises RecipeProblems."""
    return _load_alone(path, "judges", JudgeSpec)


def load_curriculum(path: Path) -> CurriculumSpec:
    """Load and check one curriculum file; raises RecipeProblems."""
    return _load_alone(path, "curricula", CurriculumSpec)


def _load_alone(path: Path, kind: files.Kind, union: Any) -> Any:
    document, problems = _read(path, str(path))
    spec, faults = _check_kind(document, union)
    problems += [document.locate(fault) for fault in faults]
    if problems:
        raise RecipeProblems(problems)
    return spec


def _order(first_file: str) -> Callable[[Problem], tuple[bool, str, bool, int]]:
    def key(problem: Problem) -> tuple[bool, str, bool, int]:
        return (
            problem.file != first_file,
            problem.file,
            problem.override is not None,
            problem.line or 0,
        )

    return key


def _read(file: Path, shown: str) -> tuple[Document, list[Problem]]:
    try:
        raw = file.read_bytes()
    except OSError as error:
        problem = Problem(file=shown, message=f"cannot be read: {error.strerror or error}")
        raise RecipeProblems([problem]) from error
    return read_document(raw, shown)


def _run_name(file: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._") or "run"


def _set(values: Any, place: Place, value: str) -> None:
    for part in place[:-1]:
        values = values[part]
    values[place[-1]] = value


@functools.cache
def _recipe_places() -> dict[str, list[Place]]:
    trainers: dict[Place, list[str]] = {
        (stage, "trainer"): [key for key in trainer_fields(stage) if managed(stage, key) is None]
        for stage in CONFIG_CLASSES
    }
    places = key_places(Recipe, trainers)
    for title, union in (
        ("the judge's file", JudgeSpec),
        ("the curriculum's file", CurriculumSpec),
    ):
        for model in _variants(union).values():
            for key in model.model_fields:
                if key != "kind":
                    places.setdefault(key, []).append((title,))
    return places


def _check(document: Document) -> tuple[Recipe | None, list[Fault]]:
    data = dict(document.data)
    faults: list[Fault] = []
    for stage in CONFIG_CLASSES:
        section = data.get(stage)
        if isinstance(section, dict) and isinstance(section.get("trainer"), dict):  # pyright: ignore[reportUnknownMemberType]
            block, found = check_trainer(stage, section["trainer"], _recipe_places())  # pyright: ignore[reportUnknownArgumentType]
            data[stage] = {**section, "trainer": block}
            faults += found
    recipe, found = validate(Recipe, data, _recipe_places())
    faults += found
    unsound = frozenset(str(fault.path[0]) for fault in faults if fault.path)
    probe = recipe or _probe(data, unsound)
    if probe is not None:
        faults += cross_faults(probe, unsound)
    return (None if faults else recipe), faults


def _probe(data: Mapping[str, Any], unsound: frozenset[str]) -> Recipe | None:
    """The sound sections alone, so that clashes between them are found in the same pass."""
    sound = {key: value for key, value in data.items() if key not in unsound}
    recipe, _ = validate(Recipe, {"model": {"base": "-"}, **sound}, {})
    return recipe


def _variants(union: Any) -> dict[str, type[BaseModel]]:
    """The members of a union told apart by `kind` -> that kind's name."""
    members = get_args(get_args(union)[0])
    return {get_args(member.model_fields["kind"].annotation)[0]: member for member in members}


def _check_kind(document: Document, union: Any) -> tuple[Any, list[Fault]]:
    variants = _variants(union)
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


class _Named:
    """The files and folders that a recipe names, found and, where they are YAML, checked."""

    def __init__(self, *, document: Document, folder: Path) -> None:
        self.document = document
        self.folder = folder
        self.found: dict[Place, Path] = {}
        self.problems: list[Problem] = []
        self.documents: dict[Place, Document] = {}

    def at(self, place: Place) -> Any:
        here: Any = self.document.data
        for part in place:
            inside = isinstance(here, dict) or (isinstance(here, list) and isinstance(part, int))
            if not inside or (isinstance(here, dict) and part not in here):
                return None
            here = here[part]
        return here

    def complain(self, place: Place, message: str, suggestion: str | None = None) -> None:
        self.problems.append(
            self.document.locate(Fault(path=place, message=message, suggestion=suggestion))
        )

    def collect(self) -> None:
        """Find the model and every data file."""
        for place in (("model", "base"), ("model", "base", "upcycle", "from")):
            self.model(place)
        lists: list[Place] = [("sft", "data"), ("rl", "data")]
        suites = self.at(("eval", "suites"))
        for index in range(len(suites) if isinstance(suites, list) else 0):  # pyright: ignore[reportUnknownArgumentType]
            lists.append(("eval", "suites", index, "data"))
        for place in lists:
            sources = self.at(place)
            for index in range(len(sources) if isinstance(sources, list) else 0):
                self.data((*place, index, "path"))

    def model(self, place: Place) -> None:
        name = self.at(place)
        if not isinstance(name, str) or not files.looks_like_path(name):
            return
        found = self.find(place, name, "data")
        if found is not None and not (found / "config.json").is_file():
            del self.found[place]
            self.complain(place, f"{found} is no model: it has no config.json")

    def data(self, place: Place) -> None:
        name = self.at(place)
        if not isinstance(name, str) or not files.is_data_file(name):
            return
        found = self.find(place, name, "data")
        if found is not None and not found.is_file():
            del self.found[place]
            self.complain(
                place, f"{found} is a folder: name a {', '.join(files.DATA_SUFFIXES)} file"
            )
        elif found is not None and found.suffix not in files.DATA_SUFFIXES:
            self.complain(place, f"{found.name} is none of {', '.join(files.DATA_SUFFIXES)}")

    def find(self, place: Place, name: str, kind: files.Kind) -> Path | None:
        try:
            typed = self.document.came_from_override(place)
            self.found[place] = files.find(name, kind, folder=self.folder, from_cwd=typed)
            return self.found[place]
        except FileNotFoundError as error:
            self.complain(place, f"{error.strerror}: {name}", error.filename2)
            return None

    def load(self, place: Place, kind: files.Kind, union: Any) -> Any:
        """Read and check the YAML file named at `place`, or the schema's default where none is named."""
        section = self.at(place[:1])
        if not isinstance(section, dict):
            return None
        model = {"sft": "Sft", "rl": "Rl"}[str(place[0])]
        name = section.get(place[1], _default(model, str(place[1])))  # pyright: ignore[reportUnknownMemberType]
        if not isinstance(name, str):
            return None
        file = self.find(place, name, kind)
        if file is None:
            return None
        shown = _shown(file)
        try:
            document, problems = _read(file, shown)
        except RecipeProblems as error:
            self.problems += error.problems
            return None
        self.documents[place] = document
        spec, faults = _check_kind(document, union)
        self.problems += problems
        self.problems += [document.locate(fault) for fault in faults]
        return spec

    def say_of(self, place: Place, faults: Iterable[Fault]) -> None:
        self.problems += [self.documents[place].locate(fault) for fault in faults]


def _default(section: str, key: str) -> Any:
    from posttrain.recipe import schema

    model: type[BaseModel] = getattr(schema, section)
    return model.model_fields[key].default


def _shown(file: Path) -> str:
    try:
        return str(file.relative_to(Path.cwd()))
    except ValueError:
        return str(file)
