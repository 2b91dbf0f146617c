"""What every sandbox offers: one program, run apart from everything, and how that went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Reason = Literal["exit", "signal", "timeout", "memory", "output", "files"]
"""exit = it ended by itself; the others name what ended it, or the limit that it ran into."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one run may take.

    >>> Limits(wall_seconds=2.0).memory_bytes == 512 * 2**20
    True
    """

    wall_seconds: float = 5.0
    memory_bytes: int = 512 * 2**20
    """Address space where the kernel can limit that, linear memory in wasm."""
    output_bytes: int = 64 * 2**10
    """Of stdout, past which the run's reason is `output`; of stderr so much of the end is kept."""
    file_bytes: int = 2**20
    """Of each file that the program writes."""
    files: int = 64
    """Files and folders in the program's own folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """How one run went."""

    stdout: bytes
    stderr: str
    exit: int | None
    """Exit status, negative for a signal; None where the sandbox ended it without one."""
    reason: Reason
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with status 0."""
        return self.reason == "exit" and self.exit == 0


class SandboxFailure(Exception):
    """The sandbox itself failed, so nothing is known about the program; `why` fits an Outcome."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Sandbox(Protocol):
    """Runs programs written by a model; safe to call from several threads at once."""

    @property
    def kind(self) -> str:
        """landlock, wasm, docker or http."""
        ...

    @property
    def fingerprint(self) -> str:
        """Package version and profile: a self-test holds for as long as this stays the same."""
        ...

    def run(self, program: str, stdin: bytes, limits: Limits) -> Run:
        """Run Python source as `__main__`, alone, with nothing of an earlier run about.

        Raises SandboxFailure when the sandbox broke, EnvironmentFault when it cannot be had here.
        """
        ...

    def close(self) -> None:
        """End the processes that it keeps; `run` starts new ones."""
        ...


def reason_of(exit_status: int, stderr: str) -> Reason:
    """The reason of a program that ended by itself, from how Python says that memory was short."""
    last = stderr.rstrip().rpartition("\n")[2]
    if exit_status < 0:
        return "signal"
    return "memory" if exit_status and last.startswith("MemoryError") else "exit"
