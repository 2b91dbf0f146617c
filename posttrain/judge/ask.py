"""Asking a judge about every sample, batch by batch, each put down as it lands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from posttrain.engines import Engine
from posttrain.errors import EnvironmentFault
from posttrain.faults import fault_point
from posttrain.judge.ledger import Ledger, open_ledger
from posttrain.judge.likelihood import ask_likelihood
from posttrain.judge.opinion import Opinion
from posttrain.judge.rubric import ask_rubric
from posttrain.progress import progress
from posttrain.recipe.judges import LikelihoodJudge, RubricJudge
from posttrain.records import Sample, Verdict, content_hash

# Samples that fail one after the other before the engine, and not they, is held to be at fault.
_MAX_FAILED_IN_A_ROW = 3


def judge_identity(spec: LikelihoodJudge | RubricJudge, model_revision: str) -> str:
    """Hash of all that a verdict depends on: the judge but for its batch size, and the model."""
    return content_hash(spec.model_dump(mode="json", exclude={"batch_size"}), model_revision)


def judge_samples(
    samples: Sequence[Sample],
    spec: LikelihoodJudge | RubricJudge,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    *,
    judge_id: str,
    ledger: Path,
    max_model_len: int | None = None,
) -> list[Verdict]:
    """One verdict per sample, in order; what the ledger already has is not asked again.

    Sequences that do not fit `max_model_len` stay unscored. Where the engine fails on a batch, its
    samples are asked one by one: those that fail alone stay unscored for now and are asked again in
    the next run; several in a row are an engine that is gone, and its EnvironmentFault is raised.
    """
    with open_ledger(ledger, judge_id) as book, progress("judge", total=len(samples)) as bar:
        verdicts = book.verdicts()
        waiting = list({s.sample_id: s for s in samples if s.sample_id not in verdicts}.values())
        bar.advance(len(samples) - len(waiting))
        for start in range(0, len(waiting), spec.batch_size):
            batch = waiting[start : start + spec.batch_size]
            for verdict in _judge_batch(batch, spec, engine, tokenizer, max_model_len, book):
                verdicts[verdict.sample_id] = verdict
            fault_point("judge.after_batch")
            bar.advance(len(batch))
    return [verdicts[sample.sample_id] for sample in samples]


def _judge_batch(
    batch: Sequence[Sample],
    spec: LikelihoodJudge | RubricJudge,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    max_model_len: int | None,
    book: Ledger,
) -> list[Verdict]:
    """Ask about a batch and write the answers to the ledger."""

    def ask(some: Sequence[Sample]) -> list[Verdict]:
        if isinstance(spec, LikelihoodJudge):
            opinions = ask_likelihood(some, spec, engine, tokenizer, max_model_len=max_model_len)
        else:
            opinions = ask_rubric(some, spec, engine, tokenizer, max_model_len=max_model_len)
        return [
            _signed(sample, opinion, book.judge)
            for sample, opinion in zip(some, opinions, strict=True)
        ]

    try:
        verdicts = ask(batch)
    except EnvironmentFault:
        return _one_by_one(batch, ask, book)
    book.write(verdicts)
    return verdicts


def _one_by_one(
    batch: Sequence[Sample], ask: Callable[[Sequence[Sample]], list[Verdict]], book: Ledger
) -> list[Verdict]:
    """Find the samples that the engine fails on."""
    verdicts: list[Verdict] = []
    failed_in_a_row = 0
    for sample in batch:
        try:
            answered = ask([sample])
        except EnvironmentFault as fault:
            opinion = Opinion(score=None, reason=f"the engine failed: {fault.message}")
            answered = [_signed(sample, opinion, book.judge)]
            book.write(answered, failed=True)
            failed_in_a_row += 1
            if failed_in_a_row == min(_MAX_FAILED_IN_A_ROW, len(batch)):
                raise
        else:
            book.write(answered)
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
