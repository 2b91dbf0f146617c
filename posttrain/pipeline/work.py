"""Lock a run directory, check whose run it is, and keep the work of unfinished stages."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from posttrain.errors import Locked, RecipeError, SetupError
from posttrain.pipeline.environment import describe_environment
from posttrain.recipe import LoadedRecipe
from posttrain.run_directory import RunDirectory
from posttrain.tables import read_json, write_bytes, write_json

LOCK = "lock"


@contextmanager
def hold(run_dir: RunDirectory) -> Generator[None, None, None]:
    """Lock the run directory; the lock is freed at once if its holder dies.

    Raises Locked, naming the holder.
    """
    try:
        run_dir.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(run_dir.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise SetupError(
            f"cannot write the run directory {run_dir.path}: {error.strerror}",
            hint="give another folder: --run-dir FOLDER",
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _locked(run_dir) from None
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(holder).encode(), 0)
        yield
        os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def holder_of(run_dir: RunDirectory) -> Mapping[str, Any] | None:
    """Return pid, host and start of the process that holds the lock; None if it is free."""
    path = run_dir.path / LOCK
    if not path.exists():
        return None
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read_holder(path)
        return None


def check_identity(loaded: LoadedRecipe, run_dir: RunDirectory) -> None:
    """Raise RecipeError if the directory holds another recipe's run or other files."""
    hint = "give this recipe its own folder: --run-dir FOLDER"
    mine = _identity(loaded)
    path = run_dir.identity
    if path.exists():
        with suppress(ValueError):
            theirs = read_json(path)
            differing = [key for key in mine if theirs.get(key) != mine[key]]
            if differing:
                facts = ", ".join(f"{k} {json.dumps(theirs.get(k))}" for k in differing)
                own = ", ".join(f"{k} {json.dumps(mine[k])}" for k in differing)
                raise RecipeError(
                    f"{run_dir.path} holds the run of another recipe: {facts}; "
                    f"this recipe has {own}",
                    hint=hint,
                )
            return
    ours = {LOCK, run_dir.identity.name, run_dir.work.name, run_dir.stages.name}
    if run_dir.path.is_dir() and (other := {p.name for p in run_dir.path.iterdir()} - ours):
        raise RecipeError(
            f"{run_dir.path} is no run directory, and it is not empty: it has {sorted(other)[0]}",
            hint=hint,
        )
    if run_dir.path.exists() and not run_dir.path.is_dir():
        raise RecipeError(f"{run_dir.path} is a file, not a run directory", hint=hint)


def describe(loaded: LoadedRecipe, run_dir: RunDirectory) -> None:
    """Write the run's identity, its recipe as written and as resolved, and the environment."""
    run_dir.stages.mkdir(parents=True, exist_ok=True)
    run_dir.work.mkdir(exist_ok=True)
    write_json(run_dir.identity, _identity(loaded))
    write_bytes(run_dir.recipe, loaded.path.read_bytes())
    write_json(run_dir.resolved_recipe, loaded.resolved)
    write_json(run_dir.environment, describe_environment())
    job = {"recipe": loaded.resolved, "recipe_path": str(loaded.path)}
    write_json(run_dir.job, job)


def begin_work(run_dir: RunDirectory, stage: str, key: str) -> str:
    """Prepare `work/<stage>` for a key; return a message if unfinished work was found or archived.

    Work of another key is never resumed; it is archived until the stage is finished, in case the
    recipe is changed back.
    """
    folder = run_dir.work / stage
    said = ""
    if folder.exists() and (other := work_key(run_dir, stage)) != key:
        if other is None:
            shutil.rmtree(folder)
        else:
            _replace(folder, _aside(run_dir, stage, other))
            said = "unfinished work with other settings was archived"
    if not folder.exists() and (aside := _aside(run_dir, stage, key)).exists():
        aside.rename(folder)
    if folder.exists():
        return "resuming unfinished work"
    folder.mkdir(parents=True)
    write_bytes(folder / "KEY", key.encode())
    return said


def work_key(run_dir: RunDirectory, stage: str) -> str | None:
    """Return the key of a stage's unfinished work; None without any."""
    path = run_dir.work / stage / "KEY"
    return path.read_text() if path.exists() else None


def end_work(run_dir: RunDirectory, stage: str) -> None:
    """Delete the work of a finished stage."""
    shutil.rmtree(run_dir.work / stage, ignore_errors=True)
    for aside in run_dir.work.glob(f".{stage}-*"):
        shutil.rmtree(aside, ignore_errors=True)


def set_aside(run_dir: RunDirectory, folder: Path, where: str) -> Path:
    """Move a folder to `<run>/<where>/`, under a name that is free."""
    target = run_dir.path / where / folder.name
    for number in range(2, 1000):
        if not target.exists():
            break
        target = run_dir.path / where / f"{folder.name}.{number}"
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    return target


def _aside(run_dir: RunDirectory, stage: str, key: str) -> Path:
    return run_dir.work / f".{stage}-{key[:12]}"


def _replace(folder: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)


def _identity(loaded: LoadedRecipe) -> dict[str, Any]:
    return {"name": loaded.written["name"], "model.base": loaded.written["model"]["base"]}


def _locked(run_dir: RunDirectory) -> Locked:
    holder = _read_holder(run_dir.path / LOCK)
    if holder is None:
        who = "another process"
    else:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["started"]))
        who = f"process {holder['pid']} on {holder['host']}, since {since},"
    return Locked(
        f"{who} works in {run_dir.path}",
        hint=f"wait for it, or watch it: posttrain status {run_dir.path}",
    )


def _read_holder(path: Path) -> Mapping[str, Any] | None:
    try:
        value = json.loads(path.read_text())
        return value if {"pid", "host", "started"} <= set(value) else None
    except (OSError, ValueError, TypeError):
        return None
