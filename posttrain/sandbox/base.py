"""The interface of sandboxes: run one program apart from everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Reason = Literal["exit", "signal", "timeout", "memory", "output", "files"]
"""exit = the program ended by itself; the others name the signal or limit that ended it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of one run.

    >>> Limits(wall_seconds=2.0).memory_bytes == 512 * 2**20
    True
    """

    wall_seconds: float = 5.0
    memory_bytes: int = 512 * 2**20
    """Address space where the kernel can limit that, linear memory in wasm."""
    output_bytes: int = 64 * 2**10
    """Limit on stdout, past which the reason is `output`; stderr keeps this much of its end."""
    file_bytes: int = 2**20
    """Limit on each file that the program writes."""
    files: int = 64
    """Files and folders in the program's own folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """The result of one run."""

    stdout: bytes
    stderr: str
    exit: int | None
    """Exit status, negative for a signal; None where the sandbox ended it without one."""
    reason: Reason
    seconds: float

    @property
    def ok(self) -> bool:
        """Return True if it ended by itself with status 0."""
        return self.reason == "exit" and self.exit == 0


class SandboxFailure(Exception):
    """The sandbox itself failed, so nothing is known about the program; `why` suits an Outcome."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Sandbox(Protocol):
    """Runs programs that a model wrote; safe to call from several threads at once."""

    @property
    def kind(self) -> str:
        """Return landlock, wasm, docker or http."""
        ...

    @property
    def fingerprint(self) -> str:
        """Return version and profile: a self-test holds for as long as this stays the same."""
        ...

    @property
    def slow_start(self) -> str:
        """Describe what takes long before the first run; empty where nothing does."""
        ...

    def run(self, program: str, stdin: bytes, limits: Limits) -> Run:
        """Run Python source as `__main__`, alone, with no trace of an earlier run.

        Raises SandboxFailure where the sandbox broke, SetupError where this machine has none.
        """
        ...

    def close(self) -> None:
        """End the processes that are kept; `run` starts new ones."""
        ...


def reason_of(exit_status: int, stderr: str) -> Reason:
    """Return the reason of a program that ended by itself, a MemoryError told from other errors."""
    last = stderr.rstrip().rpartition("\n")[2]
    if exit_status < 0:
        return "signal"
    return "memory" if exit_status and last.startswith("MemoryError") else "exit"
