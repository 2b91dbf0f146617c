"""The ways a command may end, each with its exit code; every one ends with what to type next."""

from __future__ import annotations


class PosttrainError(Exception):
    """A failure a person can act on: `message` says what is wrong, `hint` what to type next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RecipeError(PosttrainError):
    """The recipe, or a file it names, is wrong."""

    exit_code = 2


class EnvironmentFault(PosttrainError):
    """The machine lacks something: a package, disk, memory, a model, an endpoint."""

    exit_code = 3


class HealthStop(PosttrainError):
    """Going on would waste the run: non-finite loss, lost parity, bad data."""

    exit_code = 4


class Interrupted(PosttrainError):
    """Ctrl-C or SIGTERM; the same command resumes."""

    exit_code = 5


class Locked(PosttrainError):
    """Another process holds the run directory."""

    exit_code = 6
