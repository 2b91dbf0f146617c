"""Progress: bars on a terminal, a line per minute elsewhere, and a file for `posttrain status`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PROGRESS_FILE_VARIABLE = "POSTTRAIN_PROGRESS_FILE"
"""Environment variable with the path of the file that `posttrain status` reads."""

Field = str | int | float
SECONDS_BETWEEN_LINES = 60.0
SECONDS_BETWEEN_FILES = 1.0

_terminal: TextIO | None = None
"""Stream of notes and progress bars once `divert_output` has redirected the rest."""
_live: list[Progress] = []
"""The active rich display, if any; a nested bar becomes another row of it."""


class Bar:
    """Progress of one piece of work; `progress` makes it."""

    def __init__(self, label: str, total: int | None, show: Callable[[Bar], None]) -> None:
        self.label = label
        self.total = total
        self.done = 0
        self.fields: dict[str, Field] = {}
        self.started = time.monotonic()
        self._show = show
        self._written = float("-inf")

    def advance(self, k: int = 1, **fields: Field) -> None:
        """Count `k` more items as done and show the newest value of each field beside the count."""
        self.done += k
        self.fields.update(fields)
        self._show(self)
        self.publish()

    def publish(self, *, force: bool = False) -> None:
        """Write the state to PROGRESS_FILE_VARIABLE's file, at most once a second unless forced."""
        target = os.environ.get(PROGRESS_FILE_VARIABLE)
        now = time.monotonic()
        if (
            not target
            or not is_main_process()
            or (now - self._written < SECONDS_BETWEEN_FILES and not force)
        ):
            return
        self._written = now
        row = {
            "label": self.label,
            "done": self.done,
            "total": self.total,
            "fields": self.fields,
            "seconds": round(now - self.started, 1),
            "time": time.time(),
        }
        temporary = Path(f"{target}.{os.getpid()}.tmp")
        with suppress(OSError):  # a full disk must not stop the work itself
            temporary.write_text(json.dumps(row, default=str))
            temporary.replace(target)

    def __str__(self) -> str:
        seconds = time.monotonic() - self.started
        parts = [f"{self.done}/{self.total}" if self.total is not None else str(self.done)]
        parts += [f"{name} {_number(value)}" for name, value in self.fields.items()]
        parts.append(f"{_duration(seconds)} so far")
        if self.total is not None and 0 < self.done < self.total:
            parts.append(f"about {_duration(seconds / self.done * (self.total - self.done))} left")
        return f"{self.label}: {', '.join(parts)}"


@contextmanager
def progress(
    label: str, total: int | None = None, *, stream: TextIO | None = None
) -> Generator[Bar, None, None]:
    """Show the progress of the work in the `with` block, which calls `bar.advance(k, name=value)`.

    On a terminal it is a rich bar, elsewhere a first line, one line per minute and a last line.
    Only rank 0 shows anything. `stream` defaults to standard error.
    """
    out = stream or _terminal or sys.stderr
    if not is_main_process():
        yield Bar(label, total, lambda _: None)
    elif _is_terminal(out):
        with _rich_bar(label, total, out) as bar:
            yield bar
    else:
        with _plain_lines(label, total, out) as bar:
            yield bar


def note(text: str) -> None:
    """Print one plain line, above the progress bars if there are any."""
    if not is_main_process():
        return
    if _live:
        from rich.text import Text

        _live[-1].console.print(Text(text))
    else:
        print(text, file=_terminal or sys.stderr, flush=True)


def divert_output(log: Path) -> None:
    """Redirect what this process and its children print to `log`; notes and bars stay visible.

    Redirects the descriptors 1 and 2, so that it holds for C++ libraries, too.
    """
    global _terminal
    sys.stdout.flush()
    sys.stderr.flush()
    cast(TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)  # a crash loses a line at most
    if _terminal is None:
        _terminal = os.fdopen(os.dup(2), "w")
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


@contextmanager
def _plain_lines(label: str, total: int | None, out: TextIO) -> Generator[Bar, None, None]:
    last_line = time.monotonic()

    def show(bar: Bar) -> None:
        nonlocal last_line
        if time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            print(bar, file=out, flush=True)

    bar = Bar(label, total, show)
    print(f"{label}: 0/{total}" if total is not None else f"{label}: begins", file=out, flush=True)
    bar.publish(force=True)
    ended = "stopped"
    try:
        yield bar
        ended = "done"
    finally:
        bar.publish(force=True)
        print(f"{bar} ({ended})", file=out, flush=True)


@contextmanager
def _rich_bar(label: str, total: int | None, out: TextIO) -> Generator[Bar, None, None]:
    display = _live[-1] if _live else _new_display(out)
    task: TaskID = display.add_task(label, total=total, fields="")

    def show(bar: Bar) -> None:
        text = "  ".join(f"{name} {_number(value)}" for name, value in bar.fields.items())
        display.update(task, completed=bar.done, fields=text)

    bar = Bar(label, total, show)
    bar.publish(force=True)
    is_outermost = not _live
    if is_outermost:
        display.start()
        _live.append(display)
    try:
        yield bar
    finally:
        bar.publish(force=True)
        if is_outermost:
            _live.pop()
            display.stop()
        else:
            display.remove_task(task)


def _new_display(out: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[fields]}", markup=False),
        console=Console(file=out),
    )


def _is_terminal(out: TextIO) -> bool:
    return out.isatty() and os.environ.get("TERM") != "dumb"


def is_main_process() -> bool:
    """Return whether this is the process, of several, that writes and shows progress."""
    return os.environ.get("RANK", "0") == "0"


def _number(value: Field) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    """Format seconds in units that suit their size.

    >>> _duration(4.21), _duration(75), _duration(7300)
    ('4.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
