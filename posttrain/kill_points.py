"""Named points at which a test may kill the process, to prove that a second run recovers."""

from __future__ import annotations

import os
import signal

_visits: dict[str, int] = {}


def kill_point(name: str) -> None:
    """Kill this process with SIGKILL at its n-th visit if POSTTRAIN_KILL_AT is `name:n`.

    `name` alone means the first visit.
    """
    wanted = os.environ.get("POSTTRAIN_KILL_AT")
    if not wanted:
        return
    wanted_name, _, visit = wanted.partition(":")
    if wanted_name != name:
        return
    _visits[name] = _visits.get(name, 0) + 1
    if _visits[name] == int(visit or 1):
        os.kill(os.getpid(), signal.SIGKILL)
