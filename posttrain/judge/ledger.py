"""What a judge has said so far, on disk as it says it: no answer is paid for twice."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from posttrain.records import Verdict

_TABLE = """
CREATE TABLE IF NOT EXISTS verdicts (
    judge TEXT NOT NULL,
    sample_id TEXT NOT NULL,
    score REAL,
    reason TEXT NOT NULL,
    distribution TEXT NOT NULL,
    failed INTEGER NOT NULL,
    PRIMARY KEY (judge, sample_id)
) WITHOUT ROWID
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """The verdicts of one judge in a database that several judges may share."""

    connection: sqlite3.Connection
    judge: str

    def verdicts(self) -> dict[str, Verdict]:
        """Per sample_id, what need not be asked again: every verdict but the failed ones."""
        rows = self.connection.execute(
            "SELECT sample_id, score, reason, distribution FROM verdicts "
            "WHERE judge = ? AND NOT failed",
            (self.judge,),
        )
        return {
            sample_id: Verdict(
                sample_id=sample_id,
                score=score,
                reason=reason,
                judge=self.judge,
                distribution=json.loads(distribution),
            )
            for sample_id, score, reason, distribution in rows
        }

    def write(self, verdicts: Iterable[Verdict], *, failed: bool = False) -> None:
        """Put down one batch, all of it or nothing; it is on disk when this returns.

        A failed one (the engine did not answer) keeps its reason and is asked again next time.
        """
        with self.connection:
            self.connection.executemany(
                "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (v.judge, v.sample_id, v.score, v.reason, json.dumps(v.distribution), failed)
                    for v in verdicts
                ],
            )


@contextmanager
def open_ledger(path: Path, judge: str) -> Iterator[Ledger]:
    """Open or create the database at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: a committed batch survives a power cut too, not only a killed process.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(_TABLE)
        yield Ledger(connection=connection, judge=judge)
