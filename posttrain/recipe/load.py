"""Load a recipe: its file, the files it names and the `--set` settings, checked as a whole."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from posttrain.curriculum import AnyCurriculumSpec, CurriculumSpec
from posttrain.recipe import files
from posttrain.recipe.check import Places, key_places, validate
from posttrain.recipe.cross import check_sections, notes
from posttrain.recipe.document import Document, as_map, read_document, read_file
from posttrain.recipe.families import check_families, check_levels
from posttrain.recipe.judges import JudgeSpec
from posttrain.recipe.named import NamedFiles, data_sources
from posttrain.recipe.problems import KeyPath, Mistake, Problem, RecipeProblems, dotted, show
from posttrain.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True)
class LoadedRecipe:
    """A recipe without mistakes, and where it came from."""

    recipe: Recipe
    """Paths absolute, name filled in; judge and curriculum files are read into it."""
    path: Path
    resolved: dict[str, Any]
    """The recipe as JSON values, defaults written out; Recipe.model_validate takes it back."""
    written: dict[str, Any]
    """The same with paths as they were written, so that moving files does not change it."""
    files: Mapping[str, Path]
    """Dotted key -> the file or folder that it names."""
    notes: tuple[Problem, ...]
    """Warnings: what is set and has no effect."""

    def find(self, name: str) -> Path:
        """Return the data file that a `path` in this recipe names; raise FileNotFoundError."""
        return files.find(name, "data", folder=self.path.parent)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load a recipe and check all that needs no model; raise RecipeProblems with every problem.

    A path that does not exist is looked for among the shipped recipes. Relative paths inside the
    recipe start at its folder, then at the shipped files; those in `overrides` start at the working
    directory.
    """
    file = find_recipe(path)
    document, problems = read_file(file, str(path))
    problems += apply_overrides(document, overrides)
    named = NamedFiles(document, file.parent)
    named.collect()
    recipe, mistakes = _check(document, named.unread)
    problems += [document.locate(mistake) for mistake in mistakes] + named.problems
    if problems or recipe is None:
        raise RecipeProblems(sorted(problems, key=_order(str(path))))
    name = recipe.name or re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._") or "run"
    recipe = recipe.model_copy(update={"name": name})
    written = recipe.model_dump(mode="json", by_alias=True)
    resolved = recipe.model_dump(mode="json", by_alias=True)
    for place, value in named.resolved():
        _set(resolved, place, value)
    return LoadedRecipe(
        recipe=Recipe.model_validate(resolved),
        path=file,
        resolved=resolved,
        written=written,
        files=named.files(),
        notes=tuple(document.locate(note) for note in notes(recipe)),
    )


def _check(document: Document, unread: set[KeyPath]) -> tuple[Recipe | None, list[Mistake]]:
    """Validate a document; mistakes of sections whose file could not be read are left out."""
    recipe, found = validate(Recipe, document.data, _places())
    mistakes = [one for one in found if one.path[:2] not in unread]
    for path, source in data_sources(document.data):
        at, value = (*path, "reasoning_gym"), source.get("reasoning_gym")
        mistakes += check_families(value, at)
        mistakes += check_levels(value, as_map(source.get("levels")), (*path, "levels"))
    unsound = frozenset(str(one.path[0]) for one in found if one.path)
    probe = recipe
    if recipe is None:
        # The sections without mistakes alone, for the clashes between them.
        rest = {key: value for key, value in document.data.items() if key not in unsound}
        probe, _ = validate(Recipe, {"model": {"base": "-"}, **rest}, {})
    if probe is not None:
        mistakes += check_sections(probe, unsound)
    return recipe, mistakes


@functools.cache
def _places() -> Places:
    return key_places(Recipe)


def find_recipe(path: Path) -> Path:
    """Return the recipe file, or the shipped one of that name; raise RecipeProblems."""
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
    """Load and check a judge file; raise RecipeProblems."""
    return _load_alone(path, JudgeSpec)


def load_curriculum(path: Path) -> CurriculumSpec:
    """Load and check a curriculum file; raise RecipeProblems."""
    return _load_alone(path, AnyCurriculumSpec)


def _load_alone(path: Path, kinds: Any) -> Any:
    document, problems = read_file(path, str(path))
    spec, mistakes = validate(kinds, document.data, {})
    problems += [document.locate(mistake) for mistake in mistakes]
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


def _set(values: Any, place: KeyPath, value: str) -> None:
    for part in place[:-1]:
        values = values[part]
    values[place[-1]] = value


def apply_overrides(document: Document, overrides: Sequence[str]) -> list[Problem]:
    """Set `a.b=c` in the document, each value read as YAML; the last one wins."""
    return [problem for override in overrides for problem in _apply(document, override)]


def _apply(document: Document, override: str) -> Iterator[Problem]:
    def wrong(message: str, key: str = "") -> Problem:
        return Problem(file=document.file, message=message, key=key, override=override)

    name, equals, written = override.partition("=")
    name = name.strip()
    parts = name.split(".")
    if not equals or not all(parts):
        yield wrong("expected key.key=value")
        return
    try:
        read, problems = read_document(b"value: " + written.encode("utf-8", "replace"), "--set")
    except RecipeProblems as error:
        yield from (wrong(problem.message, name) for problem in error.problems)
        return
    if problems or set(read.data) != {"value"}:
        messages = [problem.message for problem in problems] or ["more than one value"]
        yield from (wrong(message, name) for message in messages)
        return
    here: Any = document.data
    path: KeyPath = ()
    for depth, part in enumerate(parts, start=1):
        step, complaint = _step(here, part, path)
        if complaint:
            yield wrong(complaint, name)
            return
        path = (*path, step)
        new = isinstance(here, dict) and cast("dict[str, Any]", here).get(str(step)) is None
        if depth == len(parts) or new:
            cast("Any", here)[step] = read.data["value"] if depth == len(parts) else {}
            _now_from(document, path, override)
        here = cast("Any", here)[step]


def _step(here: Any, part: str, path: KeyPath) -> tuple[str | int, str]:
    """Return the key or position that `part` means, and what is wrong with it."""
    if isinstance(here, dict):
        return part, ""
    if not isinstance(here, list):
        return part, f"{dotted(path)} is {show(here)}, not a section: set it as a whole"
    size = len(cast("list[Any]", here))
    if part.isascii() and part.isdigit() and len(part) < 6 and int(part) < size:
        return int(part), ""
    span = f"0 to {size - 1}" if size else "and this one is empty"
    return part, f"{dotted(path)} is a list: take a position, {span}"


def _now_from(document: Document, path: KeyPath, override: str) -> None:
    """Forget where the value at `path` stood before."""
    for known in (document.lines, document.overrides):
        for old in [old for old in known if old[: len(path)] == path]:
            del known[old]
    document.overrides[path] = override
