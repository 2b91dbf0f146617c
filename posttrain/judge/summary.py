"""Whether the judge's scores say anything about what the model fails at."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.metrics import Interval, average_ranks, pass_rates, spearman_interval
from posttrain.prune import PruneResult
from posttrain.records import RolloutGroup, Sample, Verdict

MIN_MEASURED = 10
"""Of one capability; fewer pilot samples cannot tell whether the judge is right."""
_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def judge_summary(
    samples: Sequence[Sample],
    verdicts: Sequence[Verdict],
    pilot_groups: Sequence[RolloutGroup],
    prune_result: PruneResult,
) -> dict[str, Any]:
    """What was judged and pruned, and the rank correlation of score and measured failure rate.

    Keys, JSON values only: `capabilities` (per capability num_samples, num_kept, num_dropped,
    num_unscored, cut, score_quantiles), `unscored_reasons`, `spearman` (`overall`, `within`, and
    `capabilities` with one each; num_samples, mean, low, high), `earned` (True, False, or None
    where it could not be told) and `verdict`, the same in words.

    `within` ranks score and failure rate inside each capability and correlates the ranks of all:
    pruning compares samples of one capability only, so this is what decides. `overall` can be high
    for no better reason than that one capability is harder than another.
    """
    capability_of = {sample.sample_id: sample.capability for sample in samples}
    score_of = {v.sample_id: v.score for v in verdicts if v.score is not None}
    measured = {
        sample_id: (score_of[sample_id], 1.0 - rate)
        for sample_id, rate in pass_rates(pilot_groups).items()
        if sample_id in score_of
    }
    pairs_of = {
        capability: [pair for i, pair in measured.items() if capability_of[i] == capability]
        for capability in sorted(set(capability_of.values()))
    }
    within = [pair for pairs in pairs_of.values() for pair in _ranked(pairs)]
    num_measured = sum(bool(pairs) for pairs in pairs_of.values())
    decisive = _correlation(within, num_groups=max(1, num_measured))
    spearman = {
        "overall": _correlation(list(measured.values())),
        "within": decisive,
        "capabilities": {c: _correlation(pairs) for c, pairs in pairs_of.items()},
    }
    earned, words = _decide(decisive, num_measured)
    return {
        "capabilities": {
            capability: _counts(capability, capability_of, score_of, prune_result)
            for capability in pairs_of
        },
        "unscored_reasons": _tally(row.reason for row in prune_result.unscored),
        "spearman": spearman,
        "earned": earned,
        "verdict": words,
    }


def _ranked(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Scores and failure rates as ranks in (0, 1) of mean one half, so that capabilities can be
    pooled.
    """
    scores, failures = (
        ((average_ranks([pair[side] for pair in pairs]) - 0.5) / max(1, len(pairs))).tolist()
        for side in (0, 1)
    )
    return list(zip(scores, failures, strict=True))


def _correlation(pairs: Sequence[tuple[float, float]], *, num_groups: int = 1) -> dict[str, Any]:
    """None for what does not exist: JSON has no NaN."""
    interval = spearman_interval(
        [score for score, _ in pairs], [failure for _, failure in pairs], num_groups=num_groups
    )
    values = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {
        "num_samples": len(pairs),
        **{name: None if math.isnan(value) else value for name, value in values.items()},
    }


def _decide(correlation: Mapping[str, Any], num_capabilities: int) -> tuple[bool | None, str]:
    """Whether the judge earned its right to prune, and the sentence that says so."""
    num_samples = correlation["num_samples"]
    if not num_samples:
        return None, (
            "The judge was not checked: no sample of the pilot has a score and a decided attempt."
        )
    # The first sample of a capability has none to be compared with.
    least = MIN_MEASURED + num_capabilities - 1
    if num_samples < least:
        return None, (
            "Too few samples were measured to tell whether the judge earns its right to prune: "
            f"{num_samples} of at least {least}. Raise sft.pilot.num_samples by "
            f"{least - num_samples} or more."
        )
    if correlation["mean"] is None:
        return None, (
            f"The judge could not be checked: over the pilot's {num_samples} samples its score, or "
            "the measured failure rate, is the same for all of a capability."
        )
    interval = Interval(mean=correlation["mean"], low=correlation["low"], high=correlation["high"])
    numbers = (
        f"rank correlation of score and measured failure rate within capabilities "
        f"{interval.mean:.2f}, 95% interval {interval.low:.2f} to {interval.high:.2f}, "
        f"over {num_samples} samples"
    )
    if interval.low > 0.0:
        return True, f"The judge earns its right to prune: {numbers}."
    if interval.high < 0.0:
        return False, f"The judge has it backwards and drops what is hard: {numbers}."
    return False, (
        f"The judge has not earned its right to prune, the interval contains 0: {numbers}."
    )


def _counts(
    capability: str,
    capability_of: Mapping[str, str],
    score_of: Mapping[str, float],
    prune_result: PruneResult,
) -> dict[str, Any]:
    scores = [score_of[i] for i, c in capability_of.items() if c == capability and i in score_of]
    return {
        "num_samples": sum(c == capability for c in capability_of.values()),
        "num_kept": sum(row.capability == capability for row in prune_result.kept),
        "num_dropped": sum(row.capability == capability for row in prune_result.dropped),
        "num_unscored": sum(row.capability == capability for row in prune_result.unscored),
        "cut": prune_result.cuts.get(capability),
        "score_quantiles": {
            f"{q:g}": float(value)
            for q, value in zip(_QUANTILES, np.quantile(scores, _QUANTILES), strict=True)
        }
        if scores
        else {},
    }


def _tally(reasons: Iterable[str]) -> dict[str, int]:
    """Number per reason, the commonest first; numbers inside a reason are folded."""
    return dict(Counter(re.sub(r"\d+(\.\d+)?", "#", reason) for reason in reasons).most_common())
