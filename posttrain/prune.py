"""Drop the easiest samples, with a reason for every sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from posttrain.recipe.schema import Prune
from posttrain.records import Sample, Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneDecision:
    """Whether a sample is kept, and why.

    >>> PruneDecision(sample_id="s1", capability="math", score=0.9, rank=8, reason="harder").rank
    8
    """

    sample_id: str
    capability: str
    score: float | None
    rank: int | None
    """Rank by score in its capability, 1 the easiest; None if unscored."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneResult:
    """Decisions on all samples, each once, in the samples' order.

    >>> PruneResult(kept=[], dropped=[], unscored=[], cuts={"math": 0.5}).cuts["math"]
    0.5
    """

    kept: list[PruneDecision]
    dropped: list[PruneDecision]
    unscored: list[PruneDecision]
    """Samples without a score; they are trained on, too."""
    cuts: Mapping[str, float]
    """Score of the easiest kept sample by capability; only where some are kept and some dropped."""


def prune(samples: Sequence[Sample], verdicts: Sequence[Verdict], spec: Prune) -> PruneResult:
    """Drop the floor(n * drop_easiest) easiest of each capability's n scored samples.

    Equal scores are ranked by sample_id. Raises ValueError where a sample or its verdict comes
    twice, a verdict has no sample, or a score is not in [0, 1].
    """
    _check(samples, verdicts)
    verdict_of = {verdict.sample_id: verdict for verdict in verdicts}
    ranked: dict[str, list[tuple[float, str]]] = {}
    for sample in samples:
        verdict = verdict_of.get(sample.sample_id)
        if verdict is not None and verdict.score is not None:
            ranked.setdefault(sample.capability, []).append((verdict.score, sample.sample_id))

    # Through the decimal text: 100 * 0.29 is 29 and not 28.999...
    share = Fraction(repr(float(spec.drop_easiest)))
    fate: dict[str, tuple[int, bool, str]] = {}
    cuts: dict[str, float] = {}
    for capability, scored in ranked.items():
        scored.sort()
        num_dropped = math.floor(len(scored) * share)
        if 0 < num_dropped < len(scored):
            cuts[capability] = scored[num_dropped][0]
        for rank, (score, sample_id) in enumerate(scored, start=1):
            fate[sample_id] = (
                rank,
                rank <= num_dropped,
                _reason(capability, score, rank, len(scored), num_dropped, cuts.get(capability)),
            )

    kept: list[PruneDecision] = []
    dropped: list[PruneDecision] = []
    unscored: list[PruneDecision] = []
    for sample in samples:
        verdict = verdict_of.get(sample.sample_id)
        if sample.sample_id in fate:
            rank, is_dropped, reason = fate[sample.sample_id]
            score = verdict.score if verdict else None
            (dropped if is_dropped else kept).append(_row(sample, score, rank, reason))
        else:
            reason = verdict.reason if verdict else "the judge gave no verdict"
            unscored.append(_row(sample, None, None, f"unscored: {reason}"))
    return PruneResult(kept=kept, dropped=dropped, unscored=unscored, cuts=cuts)


def _row(sample: Sample, score: float | None, rank: int | None, reason: str) -> PruneDecision:
    return PruneDecision(
        sample_id=sample.sample_id,
        capability=sample.capability,
        score=score,
        rank=rank,
        reason=reason,
    )


def _reason(
    capability: str, score: float, rank: int, num_scored: int, num_dropped: int, cut: float | None
) -> str:
    place = f"score {score:.4f}, rank {rank} of {num_scored} in {capability}, easiest first"
    if not num_dropped:
        return f"{place}: none are dropped"
    rule = f"the easiest {num_dropped} are dropped"
    return f"{place}: {rule}" + ("" if cut is None else f", the cut is at {cut:.4f}")


def _check(samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> None:
    sample_ids = {sample.sample_id for sample in samples}
    if len(sample_ids) != len(samples):
        raise ValueError(f"{len(samples) - len(sample_ids)} samples come twice: drop duplicates")
    judged = {verdict.sample_id for verdict in verdicts}
    if len(judged) != len(verdicts):
        raise ValueError(f"{len(verdicts) - len(judged)} samples have two verdicts: keep one each")
    if strangers := judged - sample_ids:
        raise ValueError(
            f"{len(strangers)} verdicts have no sample ({min(strangers)}, ...): "
            "judge and prune the same data"
        )
    for verdict in verdicts:
        if verdict.score is not None and not 0.0 <= verdict.score <= 1.0:
            raise ValueError(
                f"verdict on {verdict.sample_id}: score {verdict.score} is not in [0, 1]"
            )
