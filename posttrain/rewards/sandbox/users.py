"""Whom candidates run as when posttrain itself runs as root: a user that nobody is."""

from __future__ import annotations

import grp
import os
import pwd
import random
from pathlib import Path

# Below 65536, so that containers that map only so many ids have them; no distribution gives these
# to people, and systemd gives 61184 and up to services for as long as they run.
_FIRST, _LAST = 64200, 65400
WASM_ID = 64199
"""Always the same, as compiled modules must belong to whom they are loaded by."""


def unused_id() -> int | None:
    """A user and group id that no account has and no process runs as; None where we are not root.

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
