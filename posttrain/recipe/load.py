"""A recipe file, the files it names and the `--set` settings -> one checked `LoadedRecipe`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.curriculum import AnyCurriculumSpec, CurriculumSpec
from posttrain.recipe import files
from posttrain.recipe.cross import baseline_faults, notes, quota_faults
from posttrain.recipe.document import read_file
from posttrain.recipe.judges import JudgeSpec, RubricJudge
from posttrain.recipe.named import NamedFiles
from posttrain.recipe.overrides import apply_overrides
from posttrain.recipe.problems import Path as Place
from posttrain.recipe.problems import Problem, RecipeProblems, dotted
from posttrain.recipe.schema import Recipe
from posttrain.recipe.sections import check_kind, check_recipe


@dataclass(frozen=True, kw_only=True)
class LoadedRecipe:
    """A recipe that is sound, with everything it names."""

    recipe: Recipe
    """Paths absolute, name filled in, trainer numbers of the type that TRL wants."""
    path: Path
    resolved: dict[str, Any]
    """As JSON values, defaults written out, paths absolute; Recipe.model_validate takes it back."""
    written: dict[str, Any]
    """The same with names as they were written: it does not change when the files are moved."""
    judge: JudgeSpec | None
    rubric: RubricJudge | None
    """answer_judge's."""
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
    """Load and check all that can be checked without a model; raises RecipeProblems.

    A path that does not exist is looked for among the shipped recipes. Relative paths inside the
    recipe start at its folder, then at the shipped files; those given in `overrides` start at the
    working directory.
    """
    file = find_recipe(path)
    document, problems = read_file(file, str(path))
    problems += apply_overrides(document, overrides)
    recipe, faults = check_recipe(document)
    problems += [document.locate(fault) for fault in faults]
    named = NamedFiles(document, file.parent)
    named.collect()
    judge = named.judge(JudgeSpec)
    rubric = named.rubric(JudgeSpec)
    curriculum = named.curriculum(AnyCurriculumSpec)
    if recipe is not None and curriculum is not None:
        named.say_of(("rl", "curriculum"), quota_faults(recipe, curriculum))
        problems += [document.locate(fault) for fault in baseline_faults(recipe, curriculum)]
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
        rubric=rubric,
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
    return _load_alone(path, "curricula", AnyCurriculumSpec)


def _load_alone(path: Path, kind: files.Kind, union: Any) -> Any:
    document, problems = read_file(path, str(path))
    spec, faults = check_kind(document, union)
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


def _run_name(file: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._") or "run"


def _set(values: Any, place: Place, value: str) -> None:
    for part in place[:-1]:
        values = values[part]
    values[place[-1]] = value
