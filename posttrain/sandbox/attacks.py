"""The attack battery that every sandbox must hold; its programs are in attacks.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CANARY = "posttrain-canary-7f3a"
"""Content of every secret, by which an attack that read one is recognised."""

# Every attack begins with this; what it needs to know of the outside comes on stdin.
_PRELUDE = f"""
import json, os, sys
site = json.loads(sys.stdin.read())
CANARY = {CANARY!r}

def breach(what=""):
    # Straight to the descriptors: they work where the streams have been broken.
    for descriptor in (1, 2):
        try:
            os.write(descriptor, f"\\nBREACH {{what}}\\n".encode())
        except OSError:
            pass

def syscall(name, *arguments):
    # The result of a raw system call, or an OSError.
    import ctypes, platform
    number = NUMBERS[name][platform.machine() == "aarch64"]
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result

# On x86-64 and on arm64.
NUMBERS = {{
    "openat": (257, 56), "openat2": (437, 437), "ptrace": (101, 117), "unshare": (272, 97),
    "process_vm_readv": (310, 270), "io_uring_setup": (425, 425), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219),
    "add_key": (248, 217), "shmget": (29, 194), "mount": (165, 40),
    "clone": (56, 220), "personality": (135, 92), "pidfd_getfd": (438, 438),
    "msgget": (68, 186), "semget": (64, 190), "shmctl": (31, 195), "msgctl": (71, 187),
    "semctl": (66, 191),
}}
"""

# A sandbox that starts programs in somebody's folder must not have it filled with files.
_OWN_FOLDER = """
try:
    is_crowded = bool(os.listdir("."))
except OSError:
    is_crowded = False  # WebAssembly has no current folder
if is_crowded:
    import tempfile
    os.chdir(tempfile.mkdtemp(prefix="posttrain-attack-"))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attack:
    """A bounded program that says where it got through, and then does no lasting harm."""

    name: str
    family: str
    """files, proc, network, processes, resources, kernel or traces."""
    body: str
    first: str = ""
    """A program that is run before, to leave something behind."""
    privileged: bool = False
    """True if the kernel itself refuses it to ordinary users, sandbox or not."""

    @property
    def program(self) -> str:
        """Return the whole program."""
        leaves_files = self.family in ("files", "resources")
        return _PRELUDE + (_OWN_FOLDER if leaves_files else "") + self.body


def _read_battery() -> tuple[Attack, ...]:
    text = Path(__file__).with_name("attacks.toml").read_text(encoding="utf-8")
    families: dict[str, dict[str, Any]] = tomllib.loads(text)
    battery: list[Attack] = []
    for family, attacks in families.items():
        for name, value in attacks.items():
            fields: dict[str, Any] = {"body": value} if isinstance(value, str) else value
            battery.append(Attack(name=name, family=family, **fields))
    return tuple(battery)


ATTACKS = _read_battery()
