"""Folders, users and packages of the sandboxes: what is kept on disk, and who may read it."""

from __future__ import annotations

import functools
import grp
import importlib.metadata
import importlib.util
import os
import pwd
import random
import shutil
import stat
import tempfile
from pathlib import Path

from posttrain.errors import SetupError

_OF_ROOT = Path("/var/cache/posttrain")
# User ids below 65536, so that containers that map only so many have them; no distribution gives
# these to people, and systemd gives 61184 and up to services while they run.
_FIRST, _LAST = 64200, 65400
WASM_ID = 64199
"""User id of wasm candidates; one, as compiled modules must belong to who loads them."""


def kept_dir() -> Path:
    """Return the folder of runtimes, compiled modules and self-test results; make it if missing.

    POSTTRAIN_CACHE, else /var/cache/posttrain for root (candidates run as a user who cannot enter
    root's home), else ~/.cache/posttrain. Only its owner may write there.
    """
    asked = os.environ.get("POSTTRAIN_CACHE")
    if asked:
        folder = Path(asked).expanduser()
    elif os.geteuid() == 0:
        folder = _OF_ROOT
    else:
        folder = Path.home() / ".cache" / "posttrain"
    folder = folder / "sandbox"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise SetupError(
            f"the sandbox cannot keep its files in {folder}: {error.strerror}",
            hint="name a folder of yours: export POSTTRAIN_CACHE=FOLDER",
        ) from error
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise SetupError(
            f"{folder} belongs to somebody else, or others may write there",
            hint="name a folder of yours: export POSTTRAIN_CACHE=FOLDER",
        )
    return folder


def keep(made: Path, folder: Path) -> None:
    """Rename `made`, which lies beside it, to `folder`, unless another process was first."""
    try:
        made.rename(folder)
    except OSError:
        if not folder.exists():
            raise


def scratch_dir() -> Path:
    """Make a folder for the runs of one process, which others may pass through but not list."""
    folder = Path(tempfile.mkdtemp(prefix="posttrain-sandbox-"))
    folder.chmod(0o711)
    return folder


def unused_id() -> int | None:
    """Return a user and group id that no account and no process has; None if we are not root.

    Each call gives another one, so that limits by user hold for each sandbox on its own.
    """
    if os.geteuid() != 0:
        return None
    taken = {entry.pw_uid for entry in pwd.getpwall()} | {g.gr_gid for g in grp.getgrall()}
    taken |= _running()
    free = [number for number in range(_FIRST, _LAST) if number not in taken]
    return random.SystemRandom().choice(free)


def _running() -> set[int]:
    found: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found.add(folder.stat().st_uid)
        except OSError:
            continue
    return found


# ---- packages


def check_installed(module: str, *, kind: str, distribution: str, extra: str) -> None:
    """Raise SetupError if the package of a sandbox is not installed."""
    if importlib.util.find_spec(module) is None:
        raise SetupError(
            f"the {kind} sandbox needs the package {distribution}",
            hint=f"pip install 'posttrain[{extra}]'",
        )


@functools.cache
def version_of(distribution: str) -> str:
    """Return the version of a package."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def shared_packages(module: str, *distributions: str) -> Path:
    """Return a folder to import `module` and all the distributions from, which others may enter.

    Candidates of a root process run as another user, who often cannot enter the folder that
    posttrain is installed in: then the packages are linked, or else copied. Raises SetupError
    where neither is possible.
    """
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parent.parent
    if open_to_others(installed):
        return installed
    found = [importlib.metadata.distribution(name) for name in distributions]
    folder = kept_dir() / "-".join(["packages", *(f"{d.name}-{d.version}" for d in found)])
    if folder.exists():
        return folder
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as making:
            target = Path(making) / "packages"
            for distribution in found:
                for file in distribution.files or ():
                    # Scripts lie beside site-packages and are not imported.
                    if ".." not in file.parts:
                        _place(Path(str(distribution.locate_file(file))), target / file)
            for path in (target, *target.rglob("*")):
                if path.is_dir():
                    path.chmod(0o755)
            keep(target, folder)
    except OSError as error:
        raise SetupError(
            f"the sandbox runs as another user than root, who cannot enter {installed}, and "
            f"cannot copy {', '.join(distributions)} to {folder}: {error}",
            hint="make room there, or name another folder: export POSTTRAIN_CACHE=FOLDER",
        ) from error
    return folder


def open_to_others(folder: Path) -> bool:
    """Return whether any user can reach and enter `folder`."""
    return all(each.stat().st_mode & 0o001 for each in (folder, *folder.parents))


def _place(source: Path, target: Path) -> None:
    if not source.exists():
        # RECORD names compiled files too, which need not be there.
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.stat().st_mode & 0o004:
        try:
            os.link(source, target)
        except OSError:
            # Another file system, or one without hard links.
            pass
        else:
            return
    shutil.copyfile(source, target)
    target.chmod(0o644)
