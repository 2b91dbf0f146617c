"""A copy of this Python that candidates run on: interpreter, standard library, shared libraries.

A copy, because a sandbox allows or denies whole folders, and an installed Python has site-packages
inside: data sets with their answers among them. It can also be reached when candidates run as
another user than the one whose home holds the Python that posttrain runs on.
"""

from __future__ import annotations

import compileall
import functools
import hashlib
import json
import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from posttrain.errors import SetupError
from posttrain.sandbox.places import keep, kept_dir

_LEFT_OUT = (
    "_tkinter.*",
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "pydoc_data",
    "__pycache__",
    "config-*",
    "*.a",
)
# Prints the shared libraries that the interpreter, its extension modules and those of the guard
# package need, one a line. No windows for candidates: _tkinter would bring X11.
_LIBRARIES = """
import ctypes, importlib, os, sys
for name in os.listdir(sys.argv[1]) if os.path.isdir(sys.argv[1]) else ():
    try:
        if not name.startswith("_tkinter"):
            importlib.import_module(name.partition(".")[0])
    except BaseException:
        pass
for folder in sys.argv[2:]:
    for name in os.listdir(folder):
        if name.endswith(".so"):
            ctypes.CDLL(os.path.join(folder, name))
with open("/proc/self/maps") as maps:
    found = {line.split(None, 5)[5].strip() for line in maps if line.count("/")}
print("\\n".join(sorted(path for path in found if ".so" in os.path.basename(path))))
"""


class Runtime:
    """Location of the copy; `folder` and `loader` are all that has to be readable."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python3"
        self.libraries = folder / "lib"
        self.guard = folder / "guard"
        """Packages for the sandbox's own use; closed to candidates."""
        self.standard_library = folder / "lib" / f"python{_version()}"

    @property
    def loader(self) -> Path:
        """Return the dynamic loader, which programs name by an absolute path."""
        return Path((self.folder / "loader").read_text())


@functools.cache
def runtime(guard_package: str | None) -> Runtime:
    """Return the copy, made on first use; `guard_package` names a folder copied beside it.

    Raises SetupError when it cannot be made.
    """
    standard_library = Path(sysconfig.get_path("stdlib"))
    guards = [Path(guard_package)] if guard_package else []
    libraries = _libraries(standard_library / "lib-dynload", *guards)
    key = _key([Path(sys.executable).resolve(), *libraries, *guards, standard_library])
    folder = kept_dir() / f"python-{_version()}-{key}"
    if not (folder / "loader").exists():
        try:
            _make(folder, standard_library, libraries, guards)
        except OSError as error:
            raise SetupError(
                f"the sandbox cannot copy Python to {folder}: {error}",
                hint="make room there, or name another folder: export POSTTRAIN_CACHE=FOLDER",
            ) from error
    return Runtime(folder)


def _make(folder: Path, standard_library: Path, libraries: list[Path], guards: list[Path]) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as making:
        target = Path(making) / "python"
        (target / "bin").mkdir(parents=True)
        (target / "lib").mkdir()
        shutil.copyfile(Path(sys.executable).resolve(), target / "bin" / "python3")
        copied = target / "lib" / f"python{_version()}"
        leave_out = shutil.ignore_patterns(*_LEFT_OUT)
        shutil.copytree(standard_library, copied, ignore=leave_out, symlinks=False)
        loader = ""
        for library in libraries:
            if library.name.startswith(("ld-", "ld64")) or library.name.startswith("ld."):
                loader = str(library)
            elif not any(map(library.is_relative_to, (standard_library, *guards))):
                shutil.copyfile(library, target / "lib" / library.name)
                for name in _other_names(library):
                    (target / "lib" / name).symlink_to(library.name)
        for guard in guards:
            shutil.copytree(guard, target / "guard" / guard.name)
        # Unchecked: the copy never changes, and looking at each source costs system calls.
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(copied, quiet=2, workers=1, invalidation_mode=unchecked)
        if guards:
            compileall.compile_dir(
                target / "guard", quiet=2, workers=1, invalidation_mode=unchecked
            )
        for path in (target, *target.rglob("*")):
            if path.is_symlink():
                continue
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
        (target / "loader").write_text(loader)
        (target / "loader").chmod(0o644)
        keep(target, folder)


def _libraries(extensions: Path, *guards: Path) -> list[Path]:
    asked = [sys.executable, "-I", "-S", "-c", _LIBRARIES, str(extensions), *map(str, guards)]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise SetupError(
            f"the sandbox cannot look into this Python: {error}", hint="posttrain doctor"
        ) from error
    return [Path(line) for line in found.stdout.splitlines()]


def _other_names(library: Path) -> list[str]:
    """Return the links beside a library that lead to it: programs ask for one of those names."""
    beside = (path for path in library.parent.iterdir() if path.is_symlink())
    return [p.name for p in beside if ".so" in p.name and p.resolve() == library.resolve()]


def _key(paths: list[Path]) -> str:
    """Hash what the copy is made of: interpreter, libraries and guard package."""
    stamps = [(str(p), s.st_size, s.st_mtime_ns) for p in paths for s in [os.stat(p)]]
    described = [sys.version, stamps, _LEFT_OUT, Path(__file__).read_text()]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
