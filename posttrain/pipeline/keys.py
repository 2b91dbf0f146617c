"""Stage keys: what a stage depends on, as values, and their hash."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import posttrain
from posttrain.errors import EnvironmentFault
from posttrain.pipeline.stages import Stage, stages_of
from posttrain.recipe import LoadedRecipe
from posttrain.records import content_hash
from posttrain.tables import file_sha256, read_json, write_json

BIG_FILE_BYTES = 64 * 2**20
EDGE_BYTES = 2**20


class FileHashes:
    """sha256 of files, remembered by inode, size and modification time; a rename loses nothing.

    A file rewritten with the same size within the file system's time resolution would go unseen.
    """

    def __init__(self, store: Path | None = None) -> None:
        self._store = store
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        if store is not None and store.exists():
            try:
                self._known = read_json(store)
            except ValueError:
                self._changed = True  # a cache that cannot be read is made anew

    def of(self, path: Path) -> str:
        """sha256 of the whole content."""
        return self._remember(path, "", file_sha256)

    def of_big(self, path: Path) -> str:
        """As `of`, but past 64 MiB only the size and the first and last MiB count."""
        if path.stat().st_size <= BIG_FILE_BYTES:
            return self.of(path)
        return self._remember(path, "#edges", _edges_sha256)

    def of_folder(self, path: Path) -> str:
        """One hash for the files directly in a checkpoint folder, hidden ones left out."""
        names = sorted(p.name for p in path.iterdir() if p.is_file() and p.name[0] != ".")
        return content_hash([[name, self.of_big(path / name)] for name in names])

    def save(self) -> None:
        """Write what is known; where that fails the next run only hashes again."""
        if self._store is not None and self._changed:
            write_json(self._store, self._known)
            self._changed = False

    def _remember(self, path: Path, kind: str, hash_it: Any) -> str:
        stat = path.stat()
        name = f"{stat.st_dev}:{stat.st_ino}{kind}"
        known = self._known.get(name)
        if known is not None and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            return known[2]
        digest: str = hash_it(path)
        self._known[name] = [stat.st_size, stat.st_mtime_ns, digest]
        self._changed = True
        return digest


def all_key_parts(
    loaded: LoadedRecipe, table: Sequence[Stage], hashes: FileHashes
) -> dict[str, dict[str, Any]]:
    """Every stage of the recipe -> what its key is made of; a key stands for an upstream stage."""
    found: dict[str, dict[str, Any]] = {}
    for stage in stages_of(loaded.recipe, table):
        upstream = {name: stage_key(found[name]) for name in stage.reads if name in found}
        found[stage.name] = {
            "recipe": dict(stage.part(loaded)),
            "seed": loaded.recipe.seed if stage.is_seeded else None,
            "inputs": {
                label: _input_hash(label, path, hashes)
                for label, path in stage.files(loaded).items()
            },
            "upstream": upstream,
            "code": {module: source_hash(module) for module in stage.modules},
        }
    return found


def stage_key(key_parts: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of a stage's key parts."""
    text = json.dumps(key_parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def stage_seed(stage: Stage, recipe_seed: int) -> int:
    """A 31-bit seed from the recipe's seed and the stage's name."""
    return int(content_hash("stage seed", recipe_seed, stage.seed_name or stage.name)[:8], 16) >> 1


def changed_parts(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two key parts, in words, upstream stages last.

    >>> changed_parts({"recipe": {"sft": {"lr": 1}}}, {"recipe": {"sft": {"lr": 2}}})
    ['sft.lr 1 -> 2']
    """
    before, after = dict(_flat(old)), dict(_flat(new))
    differing = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    said: list[str] = []
    for path in sorted(differing, key=lambda p: p[0] == "upstream"):
        kind, name = path[0], ".".join(path[1:])
        was, now = before.get(path), after.get(path)
        if kind == "recipe":
            said.append(f"{name} {_short(was)} -> {_short(now)}")
        elif kind == "seed":
            said.append(f"seed {was} -> {now}")
        elif kind == "inputs":
            said.append(f"content of {name}")
        elif kind == "code":
            said.append(f"code of {name}")
        else:
            said.append(f"stage {name}")
    return said


@cache
def source_hash(module: str) -> str:
    """sha256 of a module's source, or of every source file in a package."""
    place = Path(posttrain.__file__).parent.joinpath(*module.split(".")[1:])
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(place.parent).as_posix().encode() + b"\0")
        digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()


def _input_hash(label: str, path: Path, hashes: FileHashes) -> str:
    try:
        return hashes.of_folder(path) if path.is_dir() else hashes.of(path)
    except OSError as error:
        raise EnvironmentFault(
            f"{label}: cannot read {path}: {error.strerror}",
            hint="put the file back or correct the path, then run the same command again",
        ) from error


def _edges_sha256(path: Path) -> str:
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    with path.open("rb") as file:
        digest.update(file.read(EDGE_BYTES))
        file.seek(-EDGE_BYTES, os.SEEK_END)
        digest.update(file.read(EDGE_BYTES))
    return digest.hexdigest()


def _flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, (*path, str(key)))
    else:
        yield path, value


def _short(value: Any) -> str:
    text = "(none)" if value is None else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
