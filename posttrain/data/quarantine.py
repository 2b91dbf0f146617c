"""Rows that did not become records, each with its place and reason."""

# pyarrow ships no types
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from posttrain.tables import write_table

QUARANTINE_SCHEMA: pa.Schema = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("line", pa.int64()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("excerpt", pa.string()),
        pa.field("malformed", pa.bool_()),
    ]
)
_EXCERPT = 200


class BadRow(Exception):
    """One row cannot be used; has a reason code and what exactly is wrong."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True, slots=True)
class Raw:
    """One row of a source as it was read, or why it could not be."""

    line: int
    """1-based line of a JSONL file, row of a table, or draw of a generator."""
    excerpt: str
    values: dict[str, Any] | None = None
    bad: BadRow | None = None


def printable(text: str) -> str:
    """Return the text's beginning, with lone surrogates and control characters escaped."""
    start = text[:_EXCERPT].encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() or c == " " else repr(c)[1:-1] for c in start)


def quarantine_row(source: str, raw: Raw, bad: BadRow, *, malformed: bool) -> dict[str, Any]:
    """Return the quarantine table's row for one row of a source."""
    return {
        "source": source,
        "line": raw.line,
        "reason": bad.reason,
        "detail": printable(bad.detail),
        "excerpt": printable(raw.excerpt),
        "malformed": malformed,
    }


def by_reason(rows: Sequence[dict[str, Any]]) -> str:
    """Describe the counts by reason, most frequent first.

    >>> by_reason([{"reason": "broken_json"}, {"reason": "empty_turn"}, {"reason": "broken_json"}])
    '2 broken_json, 1 empty_turn'
    """
    counts = Counter(str(row["reason"]) for row in rows)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


def write_quarantine(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the quarantine table, with its columns even if it is empty."""
    write_table(path, rows, schema=QUARANTINE_SCHEMA)
