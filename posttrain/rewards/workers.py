"""Killable processes for checks that may hang, crash or run what a model wrote.

A worker lives across calls and is replaced after it hung or died. A request that has used more of a
processor than any honest one goes on in a slow lane: its process gets what others leave, and its
place is free, so that hung answers cost memory and idle time more than throughput. On a busy
machine the slow lane starves, so a request that had little of a processor gets more time than it
asked for.
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

PATIENCE = 0.3
"""Processor seconds in the fast lane. No answer of the labelled maths pairs takes as many; with a
sixth of that, a tenth of them stayed undecided where other work kept the processors busy."""
SURELY_HUNG = 1.0
"""Processor seconds past which a request gets a processor only when it is idle. Below them it gets
up to `MOST_TIMES` the time that it asked for."""
MOST_TIMES = 4
NUM_FAST = 4 * (os.cpu_count() or 1)
"""Requests answered at once; more than processors, as some may turn out to hang."""
NUM_SLOW = 48
"""Requests in the slow lane; when it is full, the fast lane waits."""

# Seconds between two looks at a request.
_TICK = 0.05
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

    To be called from any thread. A request that rightly takes long asks for more `patience`
    (processor seconds). Raises WorkerFailure when a worker hung past `seconds`, died or raised,
    EnvironmentFault when none can be started.
    """
    crew = _crew(kind)
    with _Lane() as lane:
        worker = crew.take()
        started, before = time.monotonic(), worker.processor_seconds()
        try:
            worker.send(request, seconds * MOST_TIMES)
            reply = None
            while reply is None:
                waited = time.monotonic() - started
                used = worker.processor_seconds() - before
                starves = used < min(SURELY_HUNG, seconds) and waited < seconds * MOST_TIMES
                if waited >= seconds and not starves:
                    break
                if used >= patience:
                    worker.demote(to_idle=used >= SURELY_HUNG)
                    lane.leave()
                reply = worker.receive(_TICK)
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
        if self.is_slow:
            return
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
