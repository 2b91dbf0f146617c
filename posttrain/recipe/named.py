"""The files and folders that a recipe names: found and, where they are YAML, checked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from posttrain.recipe import files
from posttrain.recipe.document import Document, as_map, read_file
from posttrain.recipe.problems import Fault, Problem, RecipeProblems
from posttrain.recipe.problems import Path as Place
from posttrain.recipe.schema import Rl
from posttrain.recipe.sections import check_kind, data_sources


class NamedFiles:
    """What a document names, and what is wrong with it."""

    def __init__(self, document: Document, folder: Path) -> None:
        self.document = document
        self.folder = folder
        self.found: dict[Place, Path] = {}
        self.problems: list[Problem] = []
        self.documents: dict[Place, Document] = {}

    def collect(self) -> None:
        """Find the model and every data file."""
        base = as_map(self.document.data.get("model")).get("base")
        self._model(("model", "base"), base)
        upcycle = as_map(as_map(base).get("upcycle"))
        self._model(("model", "base", "upcycle", "from"), upcycle.get("from"))
        for place, source in data_sources(self.document.data):
            self._data((*place, "path"), source.get("path"))
        answer_judge = as_map(self.document.data.get("answer_judge"))
        self._model(("answer_judge", "model"), answer_judge.get("model"))
        self._data(("answer_judge", "calibration"), answer_judge.get("calibration"))

    def judge(self, union: Any) -> Any:
        """The judge named in sft, checked, or None."""
        name = as_map(self.document.data.get("sft")).get("judge")
        return self._load(("sft", "judge"), name, "judges", union)

    def rubric(self, union: Any) -> Any:
        """The rubric named in answer_judge, checked, or None."""
        name = as_map(self.document.data.get("answer_judge")).get("rubric")
        place = ("answer_judge", "rubric")
        spec = self._load(place, name, "judges", union)
        if spec is not None and spec.kind != "rubric":
            self._complain(place, f"{name} is of kind {spec.kind}: an answer judge needs a rubric")
            return None
        return spec

    def curriculum(self, union: Any) -> Any:
        """The curriculum of the rl section, checked, or None where there is no such section."""
        section = self.document.data.get("rl")
        if not isinstance(section, dict):
            return None
        name = as_map(section).get("curriculum", Rl.model_fields["curriculum"].default)
        return self._load(("rl", "curriculum"), name, "curricula", union)

    def say_of(self, place: Place, faults: Iterable[Fault]) -> None:
        """Add faults of the YAML file named at `place`."""
        self.problems += [self.documents[place].locate(fault) for fault in faults]

    def _complain(self, place: Place, message: str, suggestion: str | None = None) -> None:
        fault = Fault(path=place, message=message, suggestion=suggestion)
        self.problems.append(self.document.locate(fault))

    def _model(self, place: Place, name: Any) -> None:
        if not isinstance(name, str) or not files.looks_like_path(name):
            return
        found = self._find(place, name, "data")
        if found is not None and not (found / "config.json").is_file():
            del self.found[place]
            self._complain(place, f"{found} is no model: it has no config.json")

    def _data(self, place: Place, name: Any) -> None:
        if not isinstance(name, str) or not (files.is_data_file(name) or self._is_file(name)):
            return
        found = self._find(place, name, "data")
        suffixes = ", ".join(files.DATA_SUFFIXES)
        if found is None:
            return
        if not found.is_file():
            del self.found[place]
            self._complain(place, f"{found} is a folder: name a {suffixes} file")
        elif found.suffix not in files.DATA_SUFFIXES:
            self._complain(place, f"{found.name} is none of {suffixes}")

    def _is_file(self, name: str) -> bool:
        """Whether a name that may be a data set's is a file beside the recipe."""
        try:
            return bool(name) and (self.folder / name).is_file()
        except (OSError, ValueError):  # a name too long, or one with a NUL byte
            return False

    def _find(self, place: Place, name: str, kind: files.Kind) -> Path | None:
        typed = self.document.came_from_override(place)
        try:
            self.found[place] = files.find(name, kind, folder=self.folder, from_cwd=typed)
        except FileNotFoundError as error:
            self._complain(place, f"{name}: {error.strerror}", error.filename2)
        return self.found.get(place)

    def _load(self, place: Place, name: Any, kind: files.Kind, union: Any) -> Any:
        file = self._find(place, name, kind) if isinstance(name, str) else None
        if file is None:
            return None
        try:
            document, problems = read_file(file, _shown(file))
        except RecipeProblems as error:
            self.problems += error.problems
            return None
        self.documents[place] = document
        spec, faults = check_kind(document, union)
        self.problems += problems
        self.say_of(place, faults)
        return spec


def _shown(file: Path) -> str:
    try:
        return str(file.relative_to(Path.cwd()))
    except ValueError:
        return str(file)
