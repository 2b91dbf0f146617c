"""Parts of a page's section, and the format of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from posttrain.records import Message

NBSP = "\u00a0"
MINUS = "\u2212"
Tone = Literal["", "up", "down", "flat"]


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph."""

    text: str
    kind: Literal["prose"] = "prose"


@dataclass(frozen=True, slots=True)
class Note:
    """A line that says what is missing, and why."""

    text: str
    kind: Literal["note"] = "note"


@dataclass(frozen=True, slots=True)
class Cell:
    """A table cell: a value, a small line under it, and a tone."""

    text: str
    sub: str = ""
    tone: Tone = ""
    numeric: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """A table row; `head` is its first cell."""

    head: str
    cells: Sequence[Cell]
    strong: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table whose first column names the rows."""

    title: str
    header: Sequence[str]
    rows: Sequence[TableRow]
    foot: Sequence[TableRow] = ()
    caption: str = ""
    kind: Literal["table"] = "table"


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart of a figure."""

    title: str
    svg: Markup
    sub: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """Charts to be read side by side."""

    title: str
    panels: Sequence[Panel]
    legend: Sequence[tuple[str, str]] = ()
    """Pairs of colour name and meaning."""
    caption: str = ""
    more: Sequence[Panel] = ()
    """Panels behind a fold."""
    wide: bool = False
    kind: Literal["figure"] = "figure"


@dataclass(frozen=True, slots=True)
class Passage:
    """A named text by a model or a data set, shown inert."""

    name: str
    text: str
    tone: Literal["", "passed", "failed", "undecided"] = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One thing to read: facts about it, then its passages."""

    title: str
    facts: Sequence[str]
    passages: Sequence[Passage]
    badge: Literal["", "passed", "failed", "undecided"] = ""


@dataclass(frozen=True, slots=True)
class Examples:
    """A fold of examples."""

    title: str
    items: Sequence[Example]
    open: bool = False
    kind: Literal["examples"] = "examples"


@dataclass(frozen=True, slots=True)
class Source:
    """A fold of preformatted text, uncut."""

    title: str
    text: str
    kind: Literal["source"] = "source"


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values."""

    title: str
    items: Sequence[tuple[str, str]]
    kind: Literal["facts"] = "facts"


Block = Prose | Note | Table | Figure | Examples | Source | Facts


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the page with an entry in its contents."""

    slug: str
    title: str
    blocks: Sequence[Block]


def text_row(head: str, *texts: str, strong: bool = False) -> TableRow:
    """Return a row of plain numeric cells."""
    return TableRow(head=head, cells=[Cell(text) for text in texts], strong=strong)


def small_multiples(
    title: str,
    panels: Sequence[Panel],
    *,
    caption: str,
    legend: Sequence[tuple[str, str]] = (),
) -> Figure:
    """Return a figure that shows the first twelve panels and folds the rest."""
    return Figure(title=title, panels=panels[:12], more=panels[12:], legend=legend, caption=caption)


def conversation(messages: Sequence[Message]) -> list[Passage]:
    """Return the turns of a conversation as passages."""
    return [Passage(turn["role"], turn["content"]) for turn in messages]


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share; a dash for None and NaN.

    >>> percent(0.4123), percent(float("nan"))
    ('41.2\xa0%', '\u2013')
    """
    if value is None or not math.isfinite(value):
        return "\u2013"
    return f"{100 * value:.{digits}f}{NBSP}%"


def points(value: float) -> str:
    """Format a signed difference in percentage points.

    >>> points(0.0731), points(-0.02)
    ('+7.3', '\u22122.0')
    """
    if not math.isfinite(value):
        return "\u2013"
    text = f"{100 * value:+.1f}"
    return text.replace("-", MINUS) if text not in ("-0.0", "+0.0") else "0.0"


def number(value: float | int | None) -> str:
    """Format a number with three digits, integers in full.

    >>> number(12345), number(0.00012), number(1.5), number(None)
    ('12,345', '0.00012', '1.5', '\u2013')
    """
    if value is None or not math.isfinite(value):
        return "\u2013"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", MINUS)
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", MINUS)


def counted(counts: Mapping[str, float]) -> list[str]:
    """Format named counts.

    >>> counted({"too_long": 2, "tokens": 12345})
    ['too long 2', 'tokens 12,345']
    """
    return [f"{name.replace('_', ' ')} {number(value)}" for name, value in counts.items()]


def duration(seconds: float | None) -> str:
    """Format seconds.

    >>> duration(4.25), duration(192), duration(7512)
    ('4.2\xa0s', '3\xa0min 12\xa0s', '2\xa0h 05\xa0min')
    """
    if seconds is None or not math.isfinite(seconds):
        return "\u2013"
    if seconds < 59.5:
        return f"{seconds:.1f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min {rest:02d}{NBSP}s"
    return f"{minutes // 60}{NBSP}h {minutes % 60:02d}{NBSP}min"


def size(num_bytes: float | None) -> str:
    """Format bytes.

    >>> size(1_500_000_000), size(2048)
    ('1.40\xa0GiB', '2.00\xa0KiB')
    """
    if num_bytes is None or not math.isfinite(num_bytes):
        return "\u2013"
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g}{NBSP}{unit}" if unit == "B" else f"{value:#.3g}{NBSP}{unit}"
        value /= 1024
    return f"{value:#.3g}{NBSP}TiB"


def plural(count: int, noun: str) -> str:
    """Format a count with its noun.

    >>> plural(1, "prompt"), plural(1200, "prompt")
    ('1 prompt', '1,200 prompts')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
