"""Tables on a terminal; text from models and runs is never markup."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH_OF_FILES = 160


def wide_console() -> Console:
    """Return a console that is wide enough for tables if output is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, WIDTH_OF_FILES))


def make_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Collection[str] = (),
    lines: Collection[int] = (),
    bold: Collection[int] = (),
) -> Table:
    """Build a table whose first column and those in `left` are left-aligned, and may wrap.

    `lines` are indices of rows with a line below, `bold` those of bold rows.
    """
    table = Table(title=Text(title), title_justify="left")
    for at, column in enumerate(columns):
        is_left = at == 0 or column in left
        table.add_column(Text(column), justify="left" if is_left else "right", no_wrap=not is_left)
    for at, row in enumerate(rows):
        style = "bold" if at in bold else ""
        table.add_row(*(Text(cell, style=style) for cell in row), end_section=at in lines)
    return table


def make_facts(facts: Iterable[tuple[str, str]]) -> Table:
    """Build a grid of names and values."""
    grid = Table.grid(padding=(0, 2))
    for name, value in facts:
        grid.add_row(Text(name), Text(value))
    return grid
