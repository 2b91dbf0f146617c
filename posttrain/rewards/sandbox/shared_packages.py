"""Installed packages where another user can read them: in place, else linked or copied.

Candidates of a root process run as somebody else, who often cannot enter the folder of root's that
posttrain is installed in.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from posttrain.errors import EnvironmentFault
from posttrain.rewards.sandbox.places import keep, kept_dir


def shared_packages(module: str, *distributions: str) -> Path:
    """A folder to import `module` from, with all the distributions, which others may enter.

    Raises EnvironmentFault when the packages can neither be linked nor copied.
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
        raise EnvironmentFault(
            f"the sandbox runs as another user than root, who cannot enter {installed}, and "
            f"cannot copy {', '.join(distributions)} to {folder}: {error}",
            hint="make room there, or name another folder: export POSTTRAIN_CACHE=FOLDER",
        ) from error
    return folder


def open_to_others(folder: Path) -> bool:
    """Whether any user can come to `folder` and into it."""
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
