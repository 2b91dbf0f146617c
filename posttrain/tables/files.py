"""Atomic writes, JSON files, nested numpy arrays, and the append-only metrics log."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from posttrain.errors import SetupError

Row = dict[str, Any]


class DamagedFile(ValueError):
    """A file whose content cannot be read; the message names it."""


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Replace `path` by `data` atomically: a crash leaves the old file or the new one.

    Raises SetupError if the disk is full or read-only; the old file is then unchanged.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _write_error(path, error) from error


def _write_error(path: Path, error: OSError) -> Exception:
    """Return a SetupError for a failed write that a person can fix, else the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return SetupError(
            f"no space left to write {path} ({os.strerror(error.errno)}); "
            "no incomplete file was left behind",
            hint="free some space and run the same command again: it goes on where it stopped",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG):
        return SetupError(
            f"cannot write {path}: {os.strerror(error.errno)}",
            hint="make the folder writable or choose another one, then run the same command again",
        )
    return error


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finite(value: Any) -> Any:
    """Replace numbers that are not finite by None, since JSON cannot represent them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in cast("Sequence[Any]", value)]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys; NaN and infinities become null."""
    text = json.dumps(finite(value), sort_keys=True, indent=2, ensure_ascii=True, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raise DamagedFile if it is not valid JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedFile(f"{path} is not valid JSON: {error}") from error


def exact_json(value: Any) -> str:
    """Return JSON text that reads back as an equal value; raise ValueError if there is none."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    if json.loads(text) != value:
        raise ValueError(f"not exact in JSON (tuples or keys that are no strings?): {text[:80]}")
    return text


class MetricsLog:
    """An append-only `metrics.jsonl` with rows `{"step", "time", "<namespace>/<name>": float}`."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._checked = False

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row in a single write; values that are not finite become null."""
        row = {
            "step": step,
            "time": time.time(),
            **{key: finite(float(v)) for key, v in values.items()},
        }
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        try:
            if not self._checked:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if self.path.exists():
                    self.rewind(None)
                self._checked = True
            with self.path.open("ab", buffering=0) as file:
                before = os.fstat(file.fileno()).st_size
                try:
                    if file.write(line) != len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    os.ftruncate(file.fileno(), before)
                    raise
        except OSError as error:
            raise _write_error(self.path, error) from error

    def rewind(self, last_step: int | None) -> None:
        """Remove rows after `last_step` (None keeps all) and a line cut short by a kill."""
        rows = read_metrics(self.path)
        kept = [row for row in rows if last_step is None or row["step"] <= last_step]
        data = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept).encode()
        if not self.path.exists() or data != self.path.read_bytes():
            write_bytes(self.path, data)


def read_metrics(path: Path) -> list[Row]:
    """Read the rows of a `metrics.jsonl`, without a last line cut short; none if it is missing."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    lines = text.split("\n")
    try:
        return [json.loads(line) for line in lines[:-1] if line]
    except json.JSONDecodeError as error:
        raise DamagedFile(f"{path} is not valid JSONL: {error}") from error


_TREE = "state.json"
_MARK = "__array__"
# Equal values give equal bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


def write_arrays(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON values and numpy arrays, nested in any way, to `path` atomically.

    Raises ValueError for any other value, arrays of objects included.
    """
    arrays: list[npt.NDArray[Any]] = []
    tree = exact_json(_without_arrays(value, arrays))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(_TREE, _DATE), tree)
        for i, array in enumerate(arrays):
            with archive.open(zipfile.ZipInfo(f"{i}.npy", _DATE), "w", force_zip64=True) as member:
                np.save(member, array, allow_pickle=False)
    write_bytes(path, file.getbuffer())


def read_arrays(path: Path) -> dict[str, Any]:
    """Read what `write_arrays` wrote; raise ValueError if the file is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            tree = json.loads(archive.read(_TREE))
            num_arrays = len(archive.namelist()) - 1
            arrays: list[npt.NDArray[Any]] = [
                np.load(io.BytesIO(archive.read(f"{i}.npy")), allow_pickle=False)
                for i in range(num_arrays)
            ]
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or not a file of arrays: {error}") from error
    return _with_arrays(tree, arrays)


def _without_arrays(value: Any, arrays: list[npt.NDArray[Any]]) -> Any:
    if isinstance(value, np.ndarray):
        array = cast("npt.NDArray[Any]", value)
        if array.dtype.hasobject:
            raise ValueError("an array of objects cannot be written, only numbers and text")
        arrays.append(np.ascontiguousarray(array))
        return {_MARK: len(arrays) - 1}
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        if any(key == _MARK for key, _ in items):
            raise ValueError(f"{_MARK} is reserved and cannot be a key")
        return {key: _without_arrays(item, arrays) for key, item in items}
    if isinstance(value, list | tuple):
        return [_without_arrays(item, arrays) for item in cast("Sequence[Any]", value)]
    return value


def _with_arrays(tree: Any, arrays: Sequence[npt.NDArray[Any]]) -> Any:
    if isinstance(tree, dict):
        branch = cast("dict[str, Any]", tree)
        if _MARK in branch:
            return arrays[int(branch[_MARK])]
        return {key: _with_arrays(item, arrays) for key, item in branch.items()}
    if isinstance(tree, list):
        return [_with_arrays(item, arrays) for item in cast("list[Any]", tree)]
    return tree
