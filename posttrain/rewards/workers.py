"""Killable processes for checks that may hang, crash or run what a model wrote.

A worker lives across calls and is replaced after it hung or died. As many answer at once as there
are processors. A request that is not answered within `PATIENCE` goes on in a slow lane: its process
runs only when a processor is idle, and its place is free for others, so that hung answers cost
memory and idle time, not throughput.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

from posttrain.errors import EnvironmentFault
from posttrain.rewards.forkserver import ForkServer, Worker, WorkerFailure

__all__ = ["WorkerFailure", "ask", "close_workers"]

Kind = Literal["math", "reasoning_gym", "instructions"]

PATIENCE = 0.05
"""Seconds in the fast lane; most answers take a few milliseconds."""
NUM_FAST = max(2, os.cpu_count() or 1)
"""Requests answered at once."""
NUM_SLOW = 64
"""Requests in the slow lane; when it is full, the fast lane waits."""

_PACKAGES: dict[Kind, tuple[str, str]] = {
    "math": ("math_verify", "math-verify"),
    "reasoning_gym": ("reasoning_gym", "reasoning-gym"),
    "instructions": ("lm_eval", "posttrain[instructions]"),
}
_fast = threading.BoundedSemaphore(NUM_FAST)
_slow = threading.BoundedSemaphore(NUM_SLOW)


class _Crew:
    """The workers of one kind: a server, and those that wait for work."""

    def __init__(self, kind: Kind) -> None:
        module, package = _PACKAGES[kind]
        if importlib.util.find_spec(module) is None:
            raise EnvironmentFault(
                f"the {kind} verifier needs the package {package}", hint=f"pip install {package}"
            )
        self._server = ForkServer(kind, module)
        self._lock = threading.Lock()
        self._idle: list[Worker] = []

    @property
    def usable(self) -> bool:
        return self._server.usable

    def take(self) -> Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.lives:
                    return worker
                worker.kill()
        return self._server.fork()

    def give(self, worker: Worker) -> None:
        with self._lock:
            self._idle.append(worker)

    def close(self) -> None:
        with self._lock:
            for worker in self._idle:
                worker.kill()
            self._idle.clear()
        self._server.close()


_crews: dict[Kind, _Crew] = {}
_crews_lock = threading.Lock()


def ask(
    kind: Kind, request: Mapping[str, Any], *, seconds: float, patience: float = PATIENCE
) -> Any:
    """A worker's answer to a JSON request; workers start on demand and are killed when they hang.

    To be called from any thread. A request that rightly takes long asks for more `patience`. Raises
    WorkerFailure when a worker hung past `seconds`, died or raised, EnvironmentFault when none can
    be started.
    """
    crew = _crew(kind)
    with _Lane() as lane:
        worker = crew.take()
        deadline = time.monotonic() + seconds
        try:
            worker.send(request, seconds)
            reply = worker.receive(min(patience, seconds))
            if reply is None and patience < seconds:
                worker.demote()
                lane.leave()
                reply = worker.receive(deadline - time.monotonic())
        except WorkerFailure:
            worker.kill()
            raise
        if reply is None:
            worker.kill()
            raise WorkerFailure(f"timeout after {seconds:g} s")
        if lane.is_slow:
            worker.kill()
        else:
            crew.give(worker)
    if "error" in reply:
        raise WorkerFailure(f"the verifier failed: {reply['error']}"[:300])
    return reply["value"]


class _Lane:
    """A place in the fast lane, which may be left for one in the slow lane."""

    def __init__(self) -> None:
        self.is_slow = False

    def __enter__(self) -> _Lane:
        _fast.acquire()
        return self

    def leave(self) -> None:
        _slow.acquire()
        self.is_slow = True
        _fast.release()

    def __exit__(self, *_: object) -> None:
        (_slow if self.is_slow else _fast).release()


def _crew(kind: Kind) -> _Crew:
    with _crews_lock:
        crew = _crews.get(kind)
        if crew is None or not crew.usable:
            crew = _crews[kind] = _Crew(kind)
        return crew


def close_workers() -> None:
    """End every worker; the next call starts new ones."""
    with _crews_lock:
        for crew in _crews.values():
            crew.close()
        _crews.clear()


atexit.register(close_workers)
