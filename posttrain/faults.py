"""Named places where a test may kill the process, to prove that a re-run recovers."""

from __future__ import annotations

import os
import signal

_hits: dict[str, int] = {}


def fault_point(name: str) -> None:
    """Die by SIGKILL at the n-th visit where POSTTRAIN_FAULT is `name:n`; `name` is the first."""
    wanted = os.environ.get("POSTTRAIN_FAULT")
    if not wanted:
        return
    wanted_name, _, nth = wanted.partition(":")
    if wanted_name != name:
        return
    _hits[name] = _hits.get(name, 0) + 1
    if _hits[name] == int(nth or 1):
        os.kill(os.getpid(), signal.SIGKILL)
