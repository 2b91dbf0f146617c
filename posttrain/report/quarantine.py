"""Rows that left the data before training, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.artefacts import QUARANTINE
from posttrain.report.blocks import (
    Block,
    Cell,
    Example,
    Examples,
    Note,
    Passage,
    Prose,
    Section,
    Table,
    TableRow,
    counted,
    plural,
)
from posttrain.report.read import Run, read_rows

MAX_REASONS = 12


def section(run: Run) -> Section:
    """Return the section on the data: rows that left, by reason, with examples."""
    blocks: list[Block] = []
    if "data" not in run.stages:
        blocks.append(Note("The data stage has not finished."))
        return Section(slug="data", title="Data", blocks=blocks)
    if facts := counted(run.stages["data"].manifest.counts):
        blocks.append(Prose("Rows: " + ", ".join(facts) + "."))
    path = run.file("data", QUARANTINE)
    rows = read_rows(path)
    if path is None:
        blocks.append(Note("There is no quarantine table: quarantine.parquet is missing."))
    elif not rows:
        blocks.append(
            Note("Nothing was quarantined: every row was usable, unique, and not held out.")
        )
    else:
        blocks.extend(quarantine(rows))
    return Section(slug="data", title="Data", blocks=blocks)


def quarantine(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Tabulate rows that left by reason and source, with a few of each to read."""
    counts = Counter((str(r["reason"]), bool(r.get("malformed"))) for r in rows)
    table = Table(
        title="Rows left out before training",
        header=["reason", "rows", "kind", "sources"],
        rows=[
            TableRow(
                head=reason,
                cells=[
                    Cell(f"{count:,}"),
                    Cell(
                        "unusable" if malformed else "usable, but not for training",
                        numeric=False,
                    ),
                    Cell(_sources(rows, reason), numeric=False),
                ],
            )
            for (reason, malformed), count in counts.most_common(MAX_REASONS)
        ],
        caption=f"{plural(len(rows), 'row')} in quarantine.parquet, each with its line and reason."
        + (
            f" The {len(counts) - MAX_REASONS} rarest reasons are only there."
            if len(counts) > MAX_REASONS
            else ""
        ),
    )
    examples = [
        Example(
            title=str(row["reason"]),
            facts=[f"{row.get('source', '')}:{row.get('line', '')}"],
            passages=[
                Passage("why", str(row.get("detail") or "")),
                Passage("row", str(row.get("excerpt") or "")),
            ],
        )
        for reason, _ in counts.most_common(MAX_REASONS)
        for row in [r for r in rows if str(r["reason"]) == reason[0]][:2]
    ]
    return [table, Examples("Rows left out, to read", items=examples)]


def _sources(rows: Sequence[Mapping[str, Any]], reason: str) -> str:
    sources = Counter(str(r.get("source", "")) for r in rows if str(r["reason"]) == reason)
    named = [f"{source} ({count:,})" for source, count in sources.most_common(3)]
    return ", ".join(named) + (f", {len(sources) - 3} more" if len(sources) > 3 else "")
