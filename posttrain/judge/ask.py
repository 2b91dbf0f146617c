"""Verdicts of a judge on samples, batch by batch, each kept in a ledger as it arrives."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from posttrain.engines import Engine
from posttrain.errors import SetupError
from posttrain.judge.likelihood import ask_likelihood
from posttrain.judge.opinion import Opinion
from posttrain.judge.rubric import ask_rubric
from posttrain.kill_points import kill_point
from posttrain.progress import progress
from posttrain.recipe.judges import JudgeSpec
from posttrain.records import Sample, Verdict, content_hash

JUDGES: Mapping[str, Callable[..., list[Opinion]]] = {
    "answer_likelihood": ask_likelihood,
    "rubric": ask_rubric,
}
"""Function that asks a judge, by the `kind` of its spec."""

# After so many failures in a row the engine is at fault, not the samples.
_MAX_FAILED_IN_A_ROW = 3


def judge_identity(spec: JudgeSpec, model_revision: str) -> str:
    """Hash what a verdict depends on: the judge without its batch size, and the model."""
    return content_hash(spec.model_dump(mode="json", exclude={"batch_size"}), model_revision)


def judge_samples(
    samples: Sequence[Sample],
    spec: JudgeSpec,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    *,
    judge_id: str,
    ledger_path: Path,
    max_model_len: int | None = None,
) -> list[Verdict]:
    """Return one verdict per sample, in order; ask only about samples not in the ledger.

    Sequences longer than `max_model_len` stay unscored. If the engine fails on a batch, its samples
    are asked one by one: those that fail alone stay unscored, and are asked again in the next run.
    Several failures in a row mean that the engine is gone, and raise its SetupError.
    """
    with open_ledger(ledger_path, judge_id) as ledger, progress("judge", total=len(samples)) as bar:
        verdicts = ledger.verdicts()
        waiting = list({s.sample_id: s for s in samples if s.sample_id not in verdicts}.values())
        bar.advance(len(samples) - len(waiting))
        for start in range(0, len(waiting), spec.batch_size):
            batch = waiting[start : start + spec.batch_size]
            for verdict in _judge_batch(batch, spec, engine, tokenizer, max_model_len, ledger):
                verdicts[verdict.sample_id] = verdict
            kill_point("judge.after_batch")
            bar.advance(len(batch))
    return [verdicts[sample.sample_id] for sample in samples]


def _judge_batch(
    batch: Sequence[Sample],
    spec: JudgeSpec,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    max_model_len: int | None,
    ledger: Ledger,
) -> list[Verdict]:
    """Ask about a batch and write the verdicts to the ledger."""

    def ask(some: Sequence[Sample]) -> list[Verdict]:
        opinions = JUDGES[spec.kind](some, spec, engine, tokenizer, max_model_len=max_model_len)
        return [
            _signed(sample, opinion, ledger.judge)
            for sample, opinion in zip(some, opinions, strict=True)
        ]

    try:
        verdicts = ask(batch)
    except SetupError:
        return _one_by_one(batch, ask, ledger)
    ledger.write(verdicts)
    return verdicts


def _one_by_one(
    batch: Sequence[Sample], ask: Callable[[Sequence[Sample]], list[Verdict]], ledger: Ledger
) -> list[Verdict]:
    """Ask about each sample of a failed batch alone, to find those that the engine fails on."""
    verdicts: list[Verdict] = []
    failed_in_a_row = 0
    for sample in batch:
        try:
            answered = ask([sample])
        except SetupError as error:
            opinion = Opinion(score=None, reason=f"the engine failed: {error.message}")
            answered = [_signed(sample, opinion, ledger.judge)]
            ledger.write(answered, failed=True)
            failed_in_a_row += 1
            if failed_in_a_row == min(_MAX_FAILED_IN_A_ROW, len(batch)):
                raise
        else:
            ledger.write(answered)
            failed_in_a_row = 0
        verdicts += answered
    return verdicts


def _signed(sample: Sample, opinion: Opinion, judge_id: str) -> Verdict:
    return Verdict(
        sample_id=sample.sample_id,
        score=opinion.score,
        reason=opinion.reason,
        judge=judge_id,
        distribution=opinion.parts,
    )


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
    """Verdicts of one judge, in a database that several judges may share."""

    connection: sqlite3.Connection
    judge: str

    def verdicts(self) -> dict[str, Verdict]:
        """Return verdicts by sample_id, without failed ones, which are asked again."""
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
        """Write one batch, all of it or nothing; it is on disk when this returns.

        A failed verdict (the engine did not answer) keeps its reason and is asked again next time.
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
