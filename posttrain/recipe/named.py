"""Find the files and folders that a recipe names, and read its judge and curriculum files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.recipe import files
from posttrain.recipe.check import children, expected_instead
from posttrain.recipe.document import Document, as_list, as_map, read_file
from posttrain.recipe.problems import KeyPath, Mistake, Problem, RecipeProblems, dotted
from posttrain.recipe.schema import DETECTORS, Recipe
from posttrain.rewards.python_source import BadFunction, Source, find_function


class NamedFiles:
    """Files that a document names, and the problems found in them."""

    def __init__(self, document: Document, folder: Path) -> None:
        self.document = document
        self.folder = folder
        self.found: dict[KeyPath, Path] = {}
        self.functions: dict[KeyPath, Source] = {}
        """Sources of the user's own functions, by the keys that name them."""
        self.problems: list[Problem] = []
        self.unread: set[KeyPath] = set()
        """Sections that are left out of the data, as their file could not be read."""

    def collect(self) -> None:
        """Find the models and data files; read the sections that stand in files of their own."""
        data = self.document.data
        base = as_map(data.get("model")).get("base")
        self._model(("model", "base"), base)
        upcycle = as_map(as_map(base).get("upcycle"))
        self._model(("model", "base", "upcycle", "from"), upcycle.get("from"))
        for path, source in data_sources(data):
            self._data((*path, "path"), source.get("path"))
            self._function((*path, "verifier"), source.get("verifier"))
        section, block, key = DETECTORS
        pairs = as_map(as_map(data.get(section)).get(block))
        for number, case in enumerate(as_list(pairs.get(key))):
            self._function((*DETECTORS, number), case, has_columns=False)
        answer_judge = as_map(data.get("answer_judge"))
        self._model(("answer_judge", "model"), answer_judge.get("model"))
        self._data(("answer_judge", "calibration"), answer_judge.get("calibration"))
        for path, place in _file_sections():
            section = data.get(str(path[0]))
            if isinstance(section, dict):
                self._section(path, as_map(section).get(str(path[1]), place.default), place.kind)

    def resolved(self) -> Iterator[tuple[KeyPath, str]]:
        """Yield the absolute form of every name that the data still holds."""
        for path, found in self.found.items():
            if path not in self.document.included:
                yield path, str(found)
        for path, source in self.functions.items():
            yield path, source.target

    def files(self) -> dict[str, Path]:
        """Return every file and folder by dotted key; modules of a function by key and module."""
        found = dict(self.found)
        for path, source in self.functions.items():
            own, *others = source.files
            found[path] = own
            found |= {(*path, str(file.relative_to(own.parent))): file for file in others}
        return {dotted(path): file for path, file in found.items()}

    def _complain(self, path: KeyPath, message: str, suggestion: str | None = None) -> None:
        mistake = Mistake(path=path, message=message, suggestion=suggestion)
        self.problems.append(self.document.locate(mistake))

    def _model(self, path: KeyPath, name: Any) -> None:
        if not isinstance(name, str) or not files.looks_like_path(name):
            return
        found = self._find(path, name, "data")
        if found is not None and not (found / "config.json").is_file():
            del self.found[path]
            self._complain(path, f"{found} is no model: it has no config.json")

    def _data(self, path: KeyPath, name: Any) -> None:
        if not isinstance(name, str) or not (files.is_data_file(name) or self._is_file(name)):
            return
        found = self._find(path, name, "data")
        suffixes = ", ".join(files.DATA_SUFFIXES)
        if found is None:
            return
        if not found.is_file():
            del self.found[path]
            self._complain(path, f"{found} is a folder: name a {suffixes} file")
        elif found.suffix not in files.DATA_SUFFIXES:
            self._complain(path, f"{found.name} is none of {suffixes}")

    def _function(self, path: KeyPath, value: Any, *, has_columns: bool = True) -> None:
        """Find a function of the user's own, `{python: file.py:name}`, without running its file."""
        path, target = (*path, "python"), as_map(value).get("python")
        if not isinstance(target, str):
            return
        folder = Path.cwd() if self.document.is_from_override(path) else self.folder
        try:
            source = find_function(target, folder)
        except BadFunction as error:
            self._complain(path, error.message, error.suggestion)
            return
        except ValueError:
            return  # not of the form file.py:name, as the schema says
        self.functions[path] = source
        if source.form is not None and source.form.required and not has_columns:
            needed = ", ".join(source.form.required)
            message = f"needs {needed}: a detector is given completion, prompt and reference only"
            self._complain(path, message)

    def _is_file(self, name: str) -> bool:
        """Return whether a name that could be a data set's is a file beside the recipe."""
        try:
            return bool(name) and (self.folder / name).is_file()
        except (OSError, ValueError):  # a name too long, or one with a NUL byte
            return False

    def _find(self, path: KeyPath, name: str, kind: files.Kind) -> Path | None:
        typed = self.document.is_from_override(path)
        try:
            self.found[path] = files.find(name, kind, folder=self.folder, from_cwd=typed)
        except FileNotFoundError as error:
            self._complain(path, f"{name}: {error.strerror}", error.filename2)
        return self.found.get(path)

    def _section(self, path: KeyPath, value: Any, kind: files.Kind) -> None:
        """Put the content of the file that `value` names in the place of its name."""
        if value is None or isinstance(value, dict):
            return
        file = None
        if isinstance(value, str):
            file = self._find(path, value, kind)
        else:
            self._complain(path, expected_instead("the name of a YAML file, or a section", value))
        try:
            if file is not None:
                document, problems = read_file(file, _shown(file))
                self.document.include(path, document)
                self.problems += problems
                return
        except RecipeProblems as error:
            self.problems += error.problems
        self.unread.add(path)
        as_map(self.document.data[str(path[0])]).pop(str(path[1]), None)


def data_sources(data: Mapping[str, Any]) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Yield every entry of a `data` list in unchecked values, with its place."""
    lists: list[tuple[KeyPath, Any]] = [
        (("sft", "data"), as_map(data.get("sft")).get("data")),
        (("rl", "data"), as_map(data.get("rl")).get("data")),
    ]
    for index, suite in enumerate(as_list(as_map(data.get("eval")).get("suites"))):
        lists.append((("eval", "suites", index, "data"), as_map(suite).get("data")))
    for path, sources in lists:
        for index, source in enumerate(as_list(sources)):
            yield (*path, index), as_map(source)


def _file_sections() -> Iterator[tuple[KeyPath, files.FileOrSection]]:
    """Yield the keys of the recipe's sections that may name a file."""
    for key, info in Recipe.model_fields.items():
        for section in children(info.annotation):
            for name, field in section.model_fields.items():
                for place in field.metadata:
                    if isinstance(place, files.FileOrSection):
                        yield (key, name), place


def _shown(file: Path) -> str:
    try:
        return str(file.relative_to(Path.cwd()))
    except ValueError:
        return str(file)
