"""Turn an exception into a message that a person can act on."""

from __future__ import annotations

import errno
import shutil
import time
import traceback
from pathlib import Path

from posttrain.errors import Interrupted, PosttrainError, SetupError

NO_SPACE = ("No space left on device", "Disk quota exceeded", "os error 28")
OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError")
FULL_BYTES = 2**20
CHARACTERS_OF_OUTPUT = 20_000
SAME_AGAIN = "run the same command again: it resumes where it stopped"


def explain(error: BaseException, place: Path) -> PosttrainError | None:
    """Return the PosttrainError that describes an exception; None for a bug."""
    if isinstance(error, PosttrainError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("stopped; finished work is kept", hint=SAME_AGAIN)
    chain = _chain(error)
    if any(_is_full_disk(e) for e in chain) or _free_bytes(place) < FULL_BYTES:
        return SetupError(
            f"the disk is full ({_free_bytes(place) // 2**20} MiB free at {place}): {error}",
            hint=f"free some space and {SAME_AGAIN}",
        )
    if any(type(e).__name__ in OUT_OF_MEMORY for e in chain):
        return SetupError(
            f"out of memory: {_first_line(error)}",
            hint="make per_device_train_batch_size or engine.gpu_memory_utilization smaller and "
            + SAME_AGAIN,
        )
    return None


def write_crash(
    run_dir: Path, what: str, error: BaseException, *, output: Path | None = None
) -> Path:
    """Write a bug's traceback, and the end of `output`, to `<run>/crash-<what>-<time>.txt`."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = run_dir / f"crash-{what}-{stamp}.txt"
    text = "".join(traceback.format_exception(error))
    if output is not None and output.exists():
        printed = output.read_text(errors="replace")[-CHARACTERS_OF_OUTPUT:]
        text += f"\nPrinted last ({output}):\n{printed}"
    path.write_text(text)
    return path


def bug_message(what: str, error: BaseException, crash: Path) -> tuple[str, str]:
    """Return message and hint for a bug: what it was, where the traceback is."""
    said = f"{what} failed: {type(error).__name__}: {_first_line(error)} (traceback in {crash})"
    return said, "this is a bug of posttrain: report it with that file"


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    here: BaseException | None = error
    while here is not None and here not in found:
        found.append(here)
        here = here.__cause__ or here.__context__
    return found


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(sign in str(error) for sign in NO_SPACE)


def _free_bytes(place: Path) -> int:
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return FULL_BYTES


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else ""
