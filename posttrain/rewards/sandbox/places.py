"""Folders that the sandbox keeps: what is costly to make, and a scratch folder per process."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from posttrain.errors import EnvironmentFault

_OF_ROOT = Path("/var/cache/posttrain")


def kept_dir() -> Path:
    """Where runtimes, compiled modules and self-test results are kept; made where it is missing.

    POSTTRAIN_CACHE, else for root /var/cache/posttrain, which the user that candidates run as can
    reach while root's home cannot be, else ~/.cache/posttrain. Only its owner may write there.
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
        raise EnvironmentFault(
            f"the sandbox cannot keep its files in {folder}: {error.strerror}",
            hint="name a folder of yours: export POSTTRAIN_CACHE=FOLDER",
        ) from error
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise EnvironmentFault(
            f"{folder} belongs to somebody else, or others may write there",
            hint="name a folder of yours: export POSTTRAIN_CACHE=FOLDER",
        )
    return folder


def keep(made: Path, folder: Path) -> None:
    """Rename what was made beside it to `folder`, unless another process was first."""
    try:
        made.rename(folder)
    except OSError:
        if not folder.exists():
            raise


def scratch_dir() -> Path:
    """A new folder for the runs of one process, which others may pass through but not list."""
    folder = Path(tempfile.mkdtemp(prefix="posttrain-sandbox-"))
    folder.chmod(0o711)
    return folder
