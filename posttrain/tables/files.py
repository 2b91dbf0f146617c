"""Files written whole or not at all; JSON, and the append-only metrics log."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from posttrain.errors import EnvironmentFault

Row = dict[str, Any]


class DamagedFile(ValueError):
    """A file that cannot be read as what it should hold; the message names it."""


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Replace `path` by `data` in one step: readers and crashes see the old file or the new one.

    Raises EnvironmentFault when the disk is full or read-only; the old file is then untouched.
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
        raise _write_fault(path, error) from error


def _write_fault(path: Path, error: OSError) -> Exception:
    """What to raise for a failed write: an EnvironmentFault where a person can mend it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return EnvironmentFault(
            f"no space left to write {path} ({os.strerror(error.errno)}); "
            "nothing half-written was left behind",
            hint="free some space and run the same command again: it goes on where it stopped",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG):
        return EnvironmentFault(
            f"cannot write {path}: {os.strerror(error.errno)}",
            hint="choose another folder, or make this one writable, and run the same command again",
        )
    return error


def file_sha256(path: Path) -> str:
    """The hexadecimal sha256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finite(value: Any) -> Any:
    """`value` with non-finite numbers replaced by None, for JSON has no name for them."""
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
    """The value in a JSON file; DamagedFile where it holds none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedFile(f"{path} is not valid JSON: {error}") from error


def exact_json(value: Any) -> str:
    """Canonical JSON text that reads back as an equal value; ValueError where there is none."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    if json.loads(text) != value:
        raise ValueError(f"not JSON values only (string keys, lists, no tuples): {text[:80]}")
    return text


class MetricsLog:
    """An append-only `metrics.jsonl` with rows `{"step", "time", "<namespace>/<name>": float}`."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._checked = False

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add one row in a single write; non-finite values become null."""
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
            raise _write_fault(self.path, error) from error

    def rewind(self, last_step: int | None) -> None:
        """On resuming, forget rows past `last_step` (None keeps all) and a line torn by a kill."""
        rows = read_metrics(self.path)
        kept = [row for row in rows if last_step is None or row["step"] <= last_step]
        data = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept).encode()
        if not self.path.exists() or data != self.path.read_bytes():
            write_bytes(self.path, data)


def read_metrics(path: Path) -> list[Row]:
    """The rows of a `metrics.jsonl`, none where there is no file, without a torn last line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    lines = text.split("\n")
    try:
        return [json.loads(line) for line in lines[:-1] if line]
    except json.JSONDecodeError as error:
        raise DamagedFile(f"{path} is not valid JSONL: {error}") from error
