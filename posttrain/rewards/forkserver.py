"""A warm process per verifier package, from which workers are forked in milliseconds.

Importing a computer algebra system takes half a second; replacing a worker that hung must not. The
server is a plain child process, not a multiprocessing one: those import the caller's main module
again, torch and all.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import EnvironmentFault

_START_LIMIT = 120.0
_FORK_LIMIT = 30.0
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


class Worker:
    """One forked process: a JSON request a line out, a JSON answer a line back."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self._owner = os.getpid()
        self._connection = connection
        self._buffer = b""

    def send(self, request: Mapping[str, Any], seconds: float) -> None:
        """Hand over a request; WorkerFailure where the process is gone or does not read."""
        line = json.dumps({**request, "seconds": seconds}).encode() + b"\n"
        self._connection.settimeout(seconds)
        try:
            self._connection.sendall(line)
        except OSError as error:
            raise WorkerFailure("the verifier crashed") from error

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """The answer, None where there is none yet; WorkerFailure where the process is gone."""
        line = _read_line(self._connection, self._buffer, seconds)
        if isinstance(line, tuple):
            answer, self._buffer = line
            return json.loads(answer)
        if line is None:
            raise WorkerFailure("the verifier crashed")
        self._buffer = line
        return None

    @property
    def lives(self) -> bool:
        """Whether it still waits for a request: nothing to read, not even an end."""
        return not select.select([self._connection], [], [], 0)[0]

    def processor_seconds(self) -> float:
        """What it has used so far; the wall clock where the system does not tell."""
        try:
            return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e9
        except (OSError, ValueError, IndexError):
            return time.monotonic()

    def demote(self, *, to_idle: bool) -> None:
        """Let others go first; with `to_idle` it runs only when a processor is idle.

        It never gets back: an ordinary user may not raise a priority.
        """
        # Gone, or the system does not allow it: the wall limit still holds.
        with contextlib.suppress(OSError):
            if to_idle and hasattr(os, "SCHED_IDLE"):
                os.sched_setscheduler(self.pid, os.SCHED_IDLE, os.sched_param(0))
            else:
                os.setpriority(os.PRIO_PROCESS, self.pid, 19)

    def kill(self) -> None:
        """End it; the server reaps it."""
        if self._owner != os.getpid():
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._connection.close()


class ForkServer:
    """The warm process of one kind, started at once."""

    def __init__(self, kind: str, package: str) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._buffer = b""
        program = Path(__file__).with_name("worker_main.py")
        environment = {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -P: the worker's folder holds a math.py, which must not hide the standard one.
                [sys.executable, "-P", str(program), kind, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**environment, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
            )
        started = self._read(_START_LIMIT)
        if "ready" not in started:
            self.close()
            raise EnvironmentFault(
                f"the {kind} verifier does not start: {started.get('error', 'no answer')}"[:400],
                hint=f"see whether `python -c 'import {package}'` works",
            )

    @property
    def usable(self) -> bool:
        """Whether this process owns it and it lives."""
        return self._owner == os.getpid() and self._process.poll() is None

    def fork(self) -> Worker:
        """A fresh worker; EnvironmentFault where the server gives none."""
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            try:
                socket.send_fds(self._control, [b"f"], [theirs.fileno()])
            except OSError:
                answer: dict[str, Any] = {}
            else:
                answer = self._read(_FORK_LIMIT)
        if "pid" not in answer:
            ours.close()
            raise EnvironmentFault(
                f"no verifier process could be started: {answer.get('error', 'no answer')}",
                hint="look at the machine's memory and process limits, then run it again",
            )
        return Worker(answer["pid"], ours)

    def close(self) -> None:
        """End the server; its workers end when their connections do."""
        if self._owner != os.getpid():
            return
        self._process.kill()
        self._process.wait()
        self._control.close()

    def _read(self, seconds: float) -> dict[str, Any]:
        line = _read_line(self._control, self._buffer, seconds)
        if not isinstance(line, tuple):
            return {}
        answer, self._buffer = line
        return json.loads(answer)


def _read_line(
    connection: socket.socket, buffer: bytes, seconds: float
) -> tuple[bytes, bytes] | bytes | None:
    """(line, rest); what came so far where time ran out; None where the other end is gone."""
    deadline = time.monotonic() + seconds
    chunks = [buffer]
    while b"\n" not in chunks[-1]:
        remaining = max(0.0, deadline - time.monotonic())
        if not select.select([connection], [], [], remaining)[0]:
            return b"".join(chunks)
        try:
            chunk = connection.recv(1 << 16)
        except OSError:
            return None
        if not chunk:
            return None
        chunks.append(chunk)
    line, _, rest = b"".join(chunks).partition(b"\n")
    return line, rest
