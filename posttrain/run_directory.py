"""Find files and finished stages in a run directory.

    runs/<name>/
      run.json  recipe.yaml  recipe.resolved.json  environment.json  report.html
      stages/<number>-<stage>/     appears by one rename, with a MANIFEST.json of its files
      work/<stage>/                what a running stage needs to go on
      aside/  quarantine/          stages that the recipe no longer has, and those that are damaged

A stage is found by its name: the number only sorts, and differs where a posttrain has more stages.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.kill_points import kill_point
from posttrain.records import content_hash
from posttrain.tables import DamagedFile, file_sha256, read_json, write_json

MANIFEST = "MANIFEST.json"
SUMMARY = "summary.json"
REPORT = "report.html"
BIG_FILE_BYTES = 64 * 2**20
EDGE_BYTES = 2**20
_STAGE_FOLDER = re.compile(r"(\d+)-([a-z-]+)")
_TEMPORARY = re.compile(r"\.tmp-(\d+-[a-z-]+)-\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunDirectory:
    """The paths in `runs/<name>/`.

    >>> RunDirectory(path=Path("runs/a")).stage(8, "rl").as_posix()
    'runs/a/stages/8-rl'
    """

    path: Path

    @property
    def identity(self) -> Path:
        """Return the file of its name and base model, which every run directory has."""
        return self.path / "run.json"

    @property
    def recipe(self) -> Path:
        """Return the file of the recipe as it was written."""
        return self.path / "recipe.yaml"

    @property
    def resolved_recipe(self) -> Path:
        """Return the file of the recipe with defaults and named files written out."""
        return self.path / "recipe.resolved.json"

    @property
    def environment(self) -> Path:
        """Return the file of the newest run's versions and machine."""
        return self.path / "environment.json"

    @property
    def report(self) -> Path:
        """Return the file of the newest report."""
        return self.path / REPORT

    @property
    def stages(self) -> Path:
        """Return the folder of finished stages."""
        return self.path / "stages"

    @property
    def work(self) -> Path:
        """Return the folder of unfinished stages, each in a folder of its name."""
        return self.path / "work"

    @property
    def running(self) -> Path:
        """Return the file that names the stage being run."""
        return self.work / "running.json"

    @property
    def hashes(self) -> Path:
        """Return the file of hashes that were computed before."""
        return self.work / "hashes.json"

    @property
    def job(self) -> Path:
        """Return the file of the loaded recipe, for stage processes."""
        return self.work / "job.json"

    def stage(self, number: int, name: str) -> Path:
        """Return the folder of a finished stage that is the `number`-th of the table."""
        return self.stages / f"{number}-{name}"

    def find_stage(self, name: str) -> Path | None:
        """Return the folder of a stage, whatever its number and state; None without one."""
        return next((p for _, found, p in _stage_folders(self.stages) if found == name), None)

    def temporary(self, number: int, name: str) -> Path:
        """Return the folder in which this process makes a stage."""
        return self.stages / f".tmp-{number}-{name}-{os.getpid()}"

    def finished_stages(self) -> dict[str, FinishedStage]:
        """Return every stage with a readable manifest by name, in order; verify no files."""
        found: dict[str, FinishedStage] = {}
        for number, name, path in _stage_folders(self.stages):
            if (manifest := read_manifest(path)) is not None:
                found[name] = FinishedStage(number=number, name=name, path=path, manifest=manifest)
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Manifest of a finished stage."""

    stage: str
    key: str
    key_parts: Mapping[str, Any]
    """Values that the key is a hash of."""
    seed: int | None
    started: float
    """Seconds since the epoch."""
    seconds: float
    peak_rss_bytes: int | None
    """Peak resident memory of the stage's process; None if it ran in the caller's."""
    counts: Mapping[str, float | int]
    """Rows, tokens and steps by name."""
    files: Mapping[str, tuple[str, int]]
    """sha256 and size in bytes by file name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedStage:
    """One finished stage."""

    number: int
    name: str
    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path | None:
        """Return the path of one of its files; None where it is missing."""
        path = self.path / name
        return path if path.exists() else None

    def summary(self) -> dict[str, Any]:
        """Return summary.json; empty where the stage has none. Raises DamagedFile."""
        path = self.path / SUMMARY
        return read_json_object(path) if path.is_file() else {}


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a stage's folder; None where there is none that can be read."""
    try:
        raw = read_json(folder / MANIFEST)
        peak = raw.get("peak_rss_bytes")
        return Manifest(
            stage=str(raw["stage"]),
            key=str(raw["key"]),
            key_parts=dict(raw["key_parts"]),
            seed=raw.get("seed"),
            started=float(raw["started"]),
            seconds=float(raw["seconds"]),
            peak_rss_bytes=None if peak is None else int(peak),
            counts=dict(raw.get("counts", {})),
            files={
                name: (str(facts["sha256"]), int(facts["bytes"]))
                for name, facts in raw["files"].items()
            },
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that should hold an object; raises DamagedFile where it does not."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise DamagedFile(f"{path} should hold a JSON object, and holds something else")
    return value  # pyright: ignore[reportUnknownVariableType]


def verify_stage(folder: Path, hashes: FileHashes) -> tuple[Manifest | None, str]:
    """Return the manifest where every file is as it says; else None and what is wrong."""
    if not (folder / MANIFEST).exists():
        return None, "it has no manifest"
    manifest = read_manifest(folder)
    if manifest is None:
        return None, "its manifest cannot be read"
    for name, (sha256, size) in manifest.files.items():
        file = folder / name
        if not file.is_file():
            return None, f"{name} is missing"
        if file.stat().st_size != size:
            return None, f"{name} has {file.stat().st_size} bytes, not {size}"
        if hashes.of(file) != sha256:
            return None, f"the content of {name} has changed"
    return manifest, ""


def seal_stage(
    folder: Path,
    *,
    hashes: FileHashes,
    stage: str,
    key: str,
    key_parts: Mapping[str, Any],
    seed: int,
    started: float,
    seconds: float,
    peak_rss_bytes: int | None,
    counts: Mapping[str, float | int],
) -> None:
    """Bring every file of `folder` to the disk, then write its manifest, last of all."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        _sync(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"sha256": hashes.of(path), "bytes": path.stat().st_size}
    for inner in sorted(p for p in folder.rglob("*") if p.is_dir()):
        _sync(inner)
    kill_point(f"{stage}.before_manifest")
    write_json(
        folder / MANIFEST,
        {
            "stage": stage,
            "key": key,
            "key_parts": dict(key_parts),
            "seed": seed,
            "started": started,
            "seconds": seconds,
            "peak_rss_bytes": peak_rss_bytes,
            "counts": dict(counts),
            "files": files,
        },
    )


def put_in_place(temporary: Path, final: Path) -> None:
    """Rename a sealed folder to where it belongs; the one it replaces is deleted afterwards."""
    old = final.with_name(f".old-{final.name}")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    temporary.rename(final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_stages(stages: Path, hashes: FileHashes) -> list[str]:
    """Finish or clear away what a killed run left half done; return what was done, in words.

    A folder whose manifest verifies is complete: only its rename was missing.
    """
    done: list[str] = []
    for temporary in sorted(stages.glob(".tmp-*")):
        matched = _TEMPORARY.fullmatch(temporary.name)
        if matched and verify_stage(temporary, hashes)[0] is not None:
            put_in_place(temporary, stages / matched[1])
            done.append(f"{matched[1]} was complete: only its rename had been missing")
        else:
            shutil.rmtree(temporary)
    for old in sorted(stages.glob(".old-*")):
        final = stages / old.name.removeprefix(".old-")
        if final.exists():
            shutil.rmtree(old)
        else:
            old.rename(final)
    return done


class FileHashes:
    """Compute sha256 of files, remembering them by inode, size and modification time.

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
        """Return the sha256 of the whole content."""
        return self._remember(path, "", file_sha256)

    def of_big(self, path: Path) -> str:
        """Return the sha256; of files over 64 MiB only that of size, first and last MiB."""
        if path.stat().st_size <= BIG_FILE_BYTES:
            return self.of(path)
        return self._remember(path, "#edges", _edges_sha256)

    def of_folder(self, path: Path) -> str:
        """Return one hash for the files directly in a checkpoint folder, hidden ones left out."""
        names = sorted(p.name for p in path.iterdir() if p.is_file() and p.name[0] != ".")
        return content_hash([[name, self.of_big(path / name)] for name in names])

    def save(self) -> None:
        """Write what is known; where that fails the next run only hashes again."""
        if self._store is not None and self._changed:
            write_json(self._store, self._known)
            self._changed = False

    def _remember(self, path: Path, kind: str, hash_it: Callable[[Path], str]) -> str:
        stat = path.stat()
        name = f"{stat.st_dev}:{stat.st_ino}{kind}"
        known = self._known.get(name)
        if known is not None and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            return known[2]
        digest = hash_it(path)
        self._known[name] = [stat.st_size, stat.st_mtime_ns, digest]
        self._changed = True
        return digest


def _edges_sha256(path: Path) -> str:
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    with path.open("rb") as file:
        digest.update(file.read(EDGE_BYTES))
        file.seek(-EDGE_BYTES, os.SEEK_END)
        digest.update(file.read(EDGE_BYTES))
    return digest.hexdigest()


def _stage_folders(stages: Path) -> Iterator[tuple[int, str, Path]]:
    """Yield number, name and path of every stage's folder, in order."""
    paths = stages.iterdir() if stages.is_dir() else ()
    matched = [(m, path) for path in paths if (m := _STAGE_FOLDER.fullmatch(path.name))]
    yield from sorted((int(m[1]), m[2], path) for m, path in matched)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        # Some file systems know no fsync for folders.
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(handle)
    finally:
        os.close(handle)
