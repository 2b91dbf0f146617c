"""Find the files that a recipe names: beside the recipe, then among the shipped ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema

from posttrain.recipe.problems import nearest

Kind = Literal["recipes", "judges", "curricula", "data"]

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
PATH_PREFIXES = ("./", "../", "/", "~")


@dataclass(frozen=True, slots=True)
class FileOrSection:
    """Annotates a key whose section may stand in a file of its own: YAML then names that file."""

    kind: Kind
    default: str | None = None
    """File that is read where the key is left out."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Allow a string besides the section."""
        section = handler(core_schema)
        alternatives = section.get("anyOf", [section])
        schema: dict[str, Any] = {"anyOf": [{"type": "string"}, *alternatives]}
        return schema if self.default is None else {**schema, "default": self.default}


PACKAGE = Path(__file__).resolve().parent.parent


def shipped_root() -> Path:
    """Return the folder of the recipes/, judges/ and curricula/ that come with posttrain."""
    packaged = PACKAGE / "_shipped"
    return packaged if packaged.is_dir() else PACKAGE.parent


def shipped_dir(kind: Kind) -> Path:
    """Return the shipped folder of one kind; data files stand beside the recipes."""
    return shipped_root() / ("recipes" if kind == "data" else kind)


def shipped_files(kind: Kind) -> list[Path]:
    """Return the shipped YAML files of one kind, sorted."""
    return sorted(shipped_dir(kind).glob("*.yaml"))


def find(name: str, kind: Kind, *, folder: Path, from_cwd: bool = False) -> Path:
    """Find the file called `name`: beside `folder`, then among the shipped ones of its kind.

    `from_cwd` looks in the working directory first, for names typed on a command line. Raises
    FileNotFoundError: `strerror` is fit for an error message, `filename2` is the nearest name that
    exists.
    """
    wanted = Path(name).expanduser()
    for place in _places(kind, folder, from_cwd):
        if _exists(place / wanted):
            return (place / wanted).resolve()
    raise FileNotFoundError(
        0, _missing(wanted, kind, folder), name, None, _near(wanted, kind, folder)
    )


def looks_like_path(name: str) -> bool:
    """Return whether a name means a place on disk rather than one on the hub."""
    return name.startswith(PATH_PREFIXES) or name in (".", "..")


def is_data_file(name: str) -> bool:
    """Return whether a data `path` means a file rather than a `datasets` name."""
    return looks_like_path(name) or name.endswith(DATA_SUFFIXES)


def _places(kind: Kind, folder: Path, from_cwd: bool) -> Iterator[Path]:
    if from_cwd:
        yield Path.cwd()
    yield folder
    yield shipped_root()
    yield shipped_dir(kind)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or one with a NUL byte
        return False


def _missing(wanted: Path, kind: Kind, folder: Path) -> str:
    if wanted.is_absolute():
        return "no such file"
    said = f"no such file in {folder}"
    if kind != "data":
        names = ", ".join(path.name for path in shipped_files(kind))
        said += f"; shipped {kind}: {names}"
    if Path.cwd() != folder and _exists(wanted):
        said += f"; paths start at the recipe's folder: write {wanted.resolve()}"
    return said


def _near(wanted: Path, kind: Kind, folder: Path) -> str | None:
    """Return the most similar name among the shipped files and those in the same folder."""
    names: dict[str, str] = {}
    for path in sorted(_entries((folder / wanted).parent)):
        if kind == "data" or path.suffix in (".yaml", ".yml"):
            names[path.name] = str(wanted.parent / path.name)
    if kind != "data":
        names |= {path.name: f"{kind}/{path.name}" for path in shipped_files(kind)}
    found = nearest(wanted.name, names)
    return None if found is None else names[found]


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (OSError, ValueError):
        return []
