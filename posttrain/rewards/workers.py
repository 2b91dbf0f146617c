"""Killable processes for checks that may hang, crash or run what a model wrote.

A worker lives across calls and is replaced after it hung or died. It is a plain child process on
two pipes, not a multiprocessing one: those import the caller's main module again, torch and all.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from posttrain.errors import EnvironmentFault

Kind = Literal["math", "reasoning_gym", "instructions"]

_START_LIMIT = 120.0
_PACKAGES: dict[Kind, tuple[str, str]] = {
    "math": ("math_verify", "math-verify"),
    "reasoning_gym": ("reasoning_gym", "reasoning-gym"),
    "instructions": ("lm_eval", "posttrain[instructions]"),
}
# What a Python process needs to find its packages; no keys and tokens for code that a model wrote.
_ENVIRONMENT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "TMPDIR",
    "NLTK_DATA",
)


class WorkerFailure(Exception):
    """A worker could not answer; `why` is short enough for an Outcome."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class _Worker:
    def __init__(self, kind: Kind) -> None:
        self.owner = os.getpid()
        self.lock = threading.Lock()
        self._buffer = b""
        program = Path(__file__).with_name("worker_main.py")
        environment = {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}
        self._process = subprocess.Popen(
            # -P: the worker's folder holds a math.py, which must not hide the standard one.
            [sys.executable, "-P", str(program), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**environment, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            bufsize=0,
        )
        started = self._read_line(time.monotonic() + _START_LIMIT)
        if started is None or "ready" not in json.loads(started):
            self.kill()
            raise EnvironmentFault(
                f"the {kind} verifier does not start: {(started or b'no answer').decode()[:300]}",
                hint=f"see whether `python -c 'import {_PACKAGES[kind][0]}'` works",
            )

    def ask(self, request: Mapping[str, Any], seconds: float) -> Any:
        line = json.dumps({**request, "seconds": seconds}).encode() + b"\n"
        deadline = time.monotonic() + seconds
        with self.lock:
            try:
                assert self._process.stdin is not None
                view = memoryview(line)
                while view:
                    view = view[self._process.stdin.write(view) or 0 :]
                answer = self._read_line(deadline)
            except (BrokenPipeError, ConnectionResetError):
                answer = b""
            if answer is None:
                self.kill()
                raise WorkerFailure(f"timeout after {seconds:g} s")
            if not answer:
                self.kill()
                raise WorkerFailure(f"the verifier crashed (exit {self._process.returncode})")
        reply = json.loads(answer)
        if "error" in reply:
            raise WorkerFailure(f"the verifier failed: {reply['error']}"[:300])
        return reply["value"]

    def _read_line(self, deadline: float) -> bytes | None:
        """The next line; None past the deadline, empty when the process is gone."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        chunks = [self._buffer]
        while b"\n" not in chunks[-1]:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([descriptor], [], [], remaining)[0]:
                return None
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                return b""
            chunks.append(chunk)
        line, _, self._buffer = b"".join(chunks).partition(b"\n")
        return line

    @property
    def usable(self) -> bool:
        return self.owner == os.getpid() and self._process.poll() is None

    def kill(self) -> None:
        if self.owner != os.getpid():
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


_workers: dict[Kind, _Worker] = {}
_workers_lock = threading.Lock()


def ask(kind: Kind, request: Mapping[str, Any], *, seconds: float) -> Any:
    """The worker's answer to a JSON request; it is started on demand and killed when it hangs.

    Raises WorkerFailure when it hung past `seconds`, died or raised, EnvironmentFault when it
    cannot be started.
    """
    with _workers_lock:
        worker = _workers.get(kind)
        if worker is None or not worker.usable:
            module, package = _PACKAGES[kind]
            if importlib.util.find_spec(module) is None:
                raise EnvironmentFault(
                    f"the {kind} verifier needs the package {package}",
                    hint=f"pip install {package}",
                )
            worker = _workers[kind] = _Worker(kind)
    return worker.ask(request, seconds)


def close_workers() -> None:
    """End every worker; the next call starts new ones."""
    with _workers_lock:
        for worker in _workers.values():
            worker.kill()
        _workers.clear()


atexit.register(close_workers)
