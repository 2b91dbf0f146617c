"""Helper processes that run candidates one at a time: a line of JSON in, a line of JSON out.

They are kept across runs because starting one is slow; what serves a candidate inside one is fresh.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from posttrain.sandbox.base import Limits, SandboxFailure

Message = Mapping[str, Any]
_LONGEST_LINE = 64 * 2**20


class Helper:
    """One helper process; `close` ends it and all that it started."""

    def __init__(
        self,
        program: Path,
        settings: Message,
        *,
        start_seconds: float,
        scratch: Path,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        user: int | None = None,
    ) -> None:
        self._scratch = scratch
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            # As text: another user may not be able to read where posttrain lies.
            [python, "-P", *(["-s"] if user is not None else []), "-B", "-c", program.read_text()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**_environment(), **(environment or {})},
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
        self._rest = b""
        try:
            started = self.ask(settings, start_seconds)
        except SandboxFailure as failure:
            said = self.last_words()
            self.close()
            raise SandboxFailure(f"{failure.why}: {said}" if said else failure.why) from failure
        if "error" in started:
            self.close()
            raise SandboxFailure(str(started["error"]))

    def ask(self, message: Message, seconds: float) -> dict[str, Any]:
        """Return the answer, within `seconds`; after SandboxFailure the helper is useless."""
        deadline = time.monotonic() + seconds
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            view = memoryview(json.dumps(message).encode() + b"\n")
            while view:
                view = view[stdin.write(view) or 0 :]
        except OSError as error:
            raise SandboxFailure("the sandbox's helper process is gone") from error
        chunks = [self._rest]
        length = len(self._rest)
        while b"\n" not in chunks[-1]:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([stdout], [], [], remaining)[0]:
                raise SandboxFailure(f"the sandbox did not answer within {seconds:g} s")
            chunk = os.read(stdout.fileno(), 1 << 16)
            length += len(chunk)
            if not chunk or length > _LONGEST_LINE:
                raise SandboxFailure("the sandbox's helper process died")
            chunks.append(chunk)
        line, _, self._rest = b"".join(chunks).partition(b"\n")
        return json.loads(line)

    def last_words(self) -> str:
        """Return the last line that it wrote to stderr, for a message."""
        assert self.process.stderr is not None
        if not select.select([self.process.stderr], [], [], 0.2)[0]:
            return ""
        said = os.read(self.process.stderr.fileno(), 1 << 16).decode(errors="replace").strip()
        return said.rpartition("\n")[2][:300]

    @property
    def usable(self) -> bool:
        return self.owner == os.getpid() and self.process.poll() is None

    def close(self) -> None:
        """End it; a forked child of the owner leaves it alone."""
        if self.owner != os.getpid():
            return
        # Its input ends, so it ends what runs in it; killing is for one that does not listen.
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self.process.wait(0.5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)


class Helpers:
    """Pool of helper processes, started as needed up to a maximum; further calls wait.

    Limits that the kernel holds are set when a helper starts, so a free one serves equal limits.
    """

    def __init__(self, start: Callable[[Limits], Helper], *, most: int) -> None:
        self._start = start
        self._free: list[tuple[Limits, Helper]] = []
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(most)
        self._most = most

    @contextlib.contextmanager
    def one(self, limits: Limits) -> Generator[Helper]:
        """Lend a helper for one exchange; it is closed, not kept, when the exchange failed."""
        with self._turns:
            helper = self._take(limits) or self._start(limits)
            try:
                yield helper
            except BaseException:
                helper.close()
                raise
            with self._lock:
                self._free.append((limits, helper))

    def _take(self, limits: Limits) -> Helper | None:
        gone: list[Helper] = []
        found = None
        with self._lock:
            kept: list[tuple[Limits, Helper]] = []
            for made_for, helper in self._free:
                if not helper.usable:
                    gone.append(helper)
                elif found is None and made_for == limits:
                    found = helper
                else:
                    kept.append((made_for, helper))
            if found is None and len(kept) >= self._most:
                gone.append(kept.pop(0)[1])
            self._free = kept
        for helper in gone:
            helper.close()
        return found

    def close(self) -> None:
        """End the helpers that are not at work."""
        with self._lock:
            free, self._free = self._free, []
        for _, helper in free:
            helper.close()


def num_helpers() -> int:
    """Return one per core that this process may use."""
    available = getattr(os, "sched_getaffinity", None)
    return max(1, len(available(0)) if available else os.cpu_count() or 1)


def _environment() -> Mapping[str, str]:
    """Return what a Python process needs to find its packages, and no key or token."""
    names = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "TMPDIR")
    return {name: os.environ[name] for name in names if name in os.environ}
