"""A warm process for each kind of worker, from which workers are forked in milliseconds.

Importing a computer algebra system takes half a second; replacing a worker that hung must not. The
server is a plain child process, not one of multiprocessing, which would import the caller's main
module again, torch and all.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import posttrain
from posttrain.errors import SetupError
from posttrain.records import OutcomeKind
from posttrain.rewards.verifier import Package

_START_LIMIT = 120.0
_FORK_LIMIT = 30.0
# The variables that a Python process needs to find its packages: no keys and tokens for code that a
# model wrote.
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


# The child imports this very package, from wherever the parent has it.
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); import posttrain; del sys.path[0]; "
    "from posttrain.rewards.worker_main import main; main()"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerKind:
    """A module whose functions run in worker processes."""

    name: str
    module: str
    """Module with `load_worker()`, for the warm process, and `answer_request(request)`."""
    memory_bytes: int
    """Limit of a worker's address space: well above what the package takes, and well below what a
    machine has. Past it Python raises MemoryError."""
    package: Package | None = None
    """Package that `load_worker` imports."""
    own_code: str | None = None
    """Argument of `load_worker` for a user's own code. Such workers have the whole
    environment, may write files, print to stderr, and may take `memory_bytes` more than loading
    took."""


class WorkerFailure(Exception):
    """A worker could not answer; `kind` and `why` are those of the outcome."""

    def __init__(self, kind: OutcomeKind, why: str) -> None:
        super().__init__(why)
        self.kind: OutcomeKind = kind
        self.why = why


class Worker:
    """A forked process that answers JSON requests, one a line."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self._owner = os.getpid()
        self._connection = connection
        self._buffer = b""

    def send(self, request: Mapping[str, Any], seconds: float) -> None:
        """Send a request; WorkerFailure where the process is gone or does not read."""
        line = json.dumps({**request, "seconds": seconds}).encode() + b"\n"
        self._connection.settimeout(seconds)
        try:
            self._connection.sendall(line)
        except OSError as error:
            raise WorkerFailure("verifier_crashed", "the verifier crashed") from error

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """Return the answer, None if there is none yet; WorkerFailure where the process is gone."""
        line = _read_line(self._connection, self._buffer, seconds)
        if isinstance(line, tuple):
            answer, self._buffer = line
            return json.loads(answer)
        if line is None:
            raise WorkerFailure("verifier_crashed", "the verifier crashed")
        self._buffer = line
        return None

    @property
    def lives(self) -> bool:
        """Return True if the process waits for a request."""
        # Nothing to read, not even the end of the stream.
        return not select.select([self._connection], [], [], 0)[0]

    def processor_seconds(self) -> float:
        """Return the processor time used so far; wall time where the system does not tell."""
        try:
            return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e9
        except (OSError, ValueError, IndexError):
            return time.monotonic()

    def demote(self, *, to_idle: bool) -> None:
        """Lower the priority for good; with `to_idle` it runs only while a processor is idle.

        An ordinary user may not raise a priority again.
        """
        # The process is gone, or the system refuses: the wall limit still holds.
        with contextlib.suppress(OSError):
            if to_idle and hasattr(os, "SCHED_IDLE"):
                os.sched_setscheduler(self.pid, os.SCHED_IDLE, os.sched_param(0))
            else:
                os.setpriority(os.PRIO_PROCESS, self.pid, 19)

    def kill(self) -> None:
        """End the process; the server reaps it."""
        if self._owner != os.getpid():
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._connection.close()


class ForkServer:
    """The warm process of one kind of worker."""

    def __init__(self, kind: WorkerKind) -> None:
        """Start the process and wait until it is warm; SetupError where it fails."""
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._buffer = b""
        root = str(Path(posttrain.__file__).parents[1])
        names = _ENVIRONMENT if kind.own_code is None else os.environ
        environment = {name: os.environ[name] for name in names if name in os.environ}
        # What a package prints is noise; what the user's own code prints is for the user.
        output = subprocess.DEVNULL if kind.own_code is None else sys.__stderr__
        self._control, theirs = socket.socketpair()
        with theirs:
            settings = {
                "module": kind.module,
                "memory_bytes": kind.memory_bytes,
                "own_code": kind.own_code,
                "control": theirs.fileno(),
            }
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, root, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**environment, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
            )
        started = self._read(_START_LIMIT)
        if "ready" not in started:
            self.close()
            why = str(started.get("error", f"no answer within {_START_LIMIT:g} s"))[:300]
            modules = kind.package.modules if kind.package else (kind.module,)
            raise SetupError(
                f"the {kind.name} verifier does not start: {why}",
                hint=f"see whether `python -c 'import {modules[0]}'` works",
            )
        self.loaded: Any = started["ready"]
        """The return value of `load_worker`."""

    @property
    def usable(self) -> bool:
        """Return True if this process started it and it lives."""
        return self._owner == os.getpid() and self._process.poll() is None

    def fork(self) -> Worker:
        """Return a fresh worker; SetupError where the server gives none."""
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
            raise SetupError(
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
    """Return (line, rest), the bytes so far if time ran out, or None at the end of the stream."""
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
