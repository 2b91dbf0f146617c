"""The ways a command may fail, each with its exit code; every one says what to type next."""

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


class SetupError(PosttrainError):
    """Something outside recipe and code is missing or broken: a package, disk, memory, a model."""

    exit_code = 3


class HealthStop(PosttrainError):
    """Going on would waste the run: a loss that is not finite, lost parity, too many bad rows."""

    exit_code = 4


class Interrupted(PosttrainError):
    """Ctrl-C or SIGTERM; the same command resumes."""

    exit_code = 5


class Locked(PosttrainError):
    """Another process holds the run directory."""

    exit_code = 6
