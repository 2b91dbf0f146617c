"""Killable processes for checks that may hang, crash or run what a model wrote.

A worker lives across calls and is replaced after it hung or died. A request that has used more
processor time than any honest one continues in a slow lane, at low priority, and frees its place in
the fast one: answers that hang cost memory and idle time rather than throughput. On a busy machine
the slow lane starves, so a request that got little processor time may run longer than it asked for.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Mapping
from typing import Any, cast

from posttrain.rewards.forkserver import ForkServer, Worker, WorkerFailure, WorkerKind

__all__ = ["WorkerFailure", "WorkerKind", "ask", "close_workers", "loaded"]

PATIENCE = 0.3
"""Processor seconds in the fast lane. No answer of the labelled maths pairs takes as many; with a
sixth of that, a tenth of them stayed undecided where other work kept the processors busy."""
SURELY_HUNG = 1.0
"""Processor seconds past which a request runs only while a processor is idle. Below them it may
take up to `MOST_TIMES` the time that it asked for."""
MOST_TIMES = 4
NUM_FAST = 4 * (os.cpu_count() or 1)
"""Requests at once; more than processors, since some may turn out to hang."""
NUM_SLOW = 48
"""Requests in the slow lane; while it is full, the fast lane waits."""

# Seconds between two looks at a request.
_TICK = 0.05
_fast = threading.BoundedSemaphore(NUM_FAST)
_slow = threading.BoundedSemaphore(NUM_SLOW)


class _Crew:
    """The workers of one kind: their server, and the idle ones."""

    def __init__(self, kind: WorkerKind) -> None:
        if kind.package is not None:
            kind.package.require(kind.name)
        self.server = ForkServer(kind)
        self._lock = threading.Lock()
        self._idle: list[Worker] = []

    @property
    def usable(self) -> bool:
        return self.server.usable

    def take(self) -> Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.lives:
                    return worker
                worker.kill()
        return self.server.fork()

    def give(self, worker: Worker) -> None:
        with self._lock:
            self._idle.append(worker)

    def close(self) -> None:
        with self._lock:
            for worker in self._idle:
                worker.kill()
            self._idle.clear()
        self.server.close()


_crews: dict[WorkerKind, _Crew] = {}
_crews_lock = threading.Lock()


def loaded(kind: WorkerKind) -> Any:
    """Return what the kind's `load_worker` returned; SetupError where it raised."""
    return _crew(kind).server.loaded


def ask(
    kind: WorkerKind,
    request: Mapping[str, Any],
    *,
    seconds: float,
    patience: float = PATIENCE,
    most_times: float = MOST_TIMES,
) -> Any:
    """Return a worker's answer to a JSON request; safe from any thread.

    Workers start on demand and are killed when they hang. A request that rightly takes long gets
    more `patience` (processor seconds in the fast lane). Raises WorkerFailure where a worker hung
    past `seconds` (`most_times` that if it got hardly any processor time), died or raised, and
    SetupError where none can be started.
    """
    crew = _crew(kind)
    with _Lane() as lane:
        worker = crew.take()
        started, before = time.monotonic(), worker.processor_seconds()
        try:
            worker.send(request, seconds * most_times)
            reply = None
            while reply is None:
                waited = time.monotonic() - started
                used = worker.processor_seconds() - before
                starves = used < min(SURELY_HUNG, seconds) and waited < seconds * most_times
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
            raise WorkerFailure("timeout", f"timeout after {seconds:g} s")
        if lane.is_slow or _ran_out_of_memory(reply):
            worker.kill()
        else:
            crew.give(worker)
    if "error" in reply:
        raise WorkerFailure(reply["kind"], f"the verifier failed: {reply['error']}"[:300])
    return reply["value"]


def _ran_out_of_memory(reply: Mapping[str, Any]) -> bool:
    """Return whether an answer says so: what the worker leaked, it would keep."""
    found = reply.get("value", reply)
    return isinstance(found, dict) and cast("Any", found).get("kind") == "out_of_memory"


class _Lane:
    """A place in the fast lane that can be exchanged for one in the slow lane."""

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


def _crew(kind: WorkerKind) -> _Crew:
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
