"""A finished stage: its directory appears by one rename, with a manifest that names every file."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.kill_points import kill_point
from posttrain.pipeline.keys import FileHashes
from posttrain.tables import read_json, write_json

NAME = "MANIFEST.json"
_TEMPORARY = re.compile(r"\.tmp-(\d+-[a-z-]+)-\d+")


def seal(folder: Path, *, hashes: FileHashes, stage: str, **facts: Any) -> None:
    """Bring every file of `folder` to the disk, then write its manifest, last of all."""
    files: dict[str, dict[str, Any]] = {}
    for path in _files(folder):
        _sync(path)
        files[path.relative_to(folder).as_posix()] = {
            "sha256": hashes.of(path),
            "bytes": path.stat().st_size,
        }
    for inner in sorted(p for p in folder.rglob("*") if p.is_dir()):
        _sync(inner)
    kill_point(f"{stage}.before_manifest")
    write_json(folder / NAME, {"stage": stage, **facts, "files": files})


def put_in_place(temporary: Path, final: Path) -> None:
    """Rename a sealed folder to where it belongs; the one it replaces is deleted afterwards."""
    old = final.with_name(f".old-{final.name}")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    temporary.rename(final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def read_manifest(folder: Path, hashes: FileHashes) -> tuple[Mapping[str, Any] | None, str]:
    """The manifest of a stage directory and ``; or None and what is wrong with it."""
    path = folder / NAME
    if not path.exists():
        return None, "it has no manifest"
    try:
        manifest = read_json(path)
        files: Mapping[str, Mapping[str, Any]] = manifest["files"]
        expected = {name: (str(f["sha256"]), int(f["bytes"])) for name, f in files.items()}
        if not isinstance(manifest["key"], str) or not isinstance(manifest["key_parts"], dict):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, "its manifest cannot be read"
    for name, (sha256, size) in expected.items():
        file = folder / name
        if not file.is_file():
            return None, f"{name} is missing"
        if file.stat().st_size != size:
            return None, f"{name} has {file.stat().st_size} bytes, not {size}"
        if hashes.of(file) != sha256:
            return None, f"the content of {name} has changed"
    return manifest, ""


def recover(stages_dir: Path, hashes: FileHashes) -> list[str]:
    """Finish or clear what a killed run left half done; says what it did.

    A sealed folder is complete, and only its rename was missing.
    """
    said: list[str] = []
    for temporary in sorted(stages_dir.glob(".tmp-*")):
        matched = _TEMPORARY.fullmatch(temporary.name)
        if matched and read_manifest(temporary, hashes)[0] is not None:
            put_in_place(temporary, stages_dir / matched[1])
            said.append(f"{matched[1]} was complete: only its rename had been missing")
        else:
            shutil.rmtree(temporary)
    for old in sorted(stages_dir.glob(".old-*")):
        final = stages_dir / old.name.removeprefix(".old-")
        if final.exists():
            shutil.rmtree(old)
        else:
            old.rename(final)
    return said


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(p for p in folder.rglob("*") if p.is_file() and p.name != NAME)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        # Some file systems know no fsync for folders.
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(handle)
    finally:
        os.close(handle)
