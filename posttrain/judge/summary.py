"""Whether the judge's scores say anything about what the model fails at."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.metrics import Interval, pass_rates, spearman_interval
from posttrain.prune import PruneResult
from posttrain.records import RolloutGroup, Sample, Verdict

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
    where it could not be measured) and `verdict`, the same in words.

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
    decisive = _correlation(within)
    spearman = {
        "overall": _correlation(list(measured.values())),
        "within": decisive,
        "capabilities": {c: _correlation(pairs) for c, pairs in pairs_of.items()},
    }
    earned, words = _decide(decisive)
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
    """Scores and failure rates as average ranks in (0, 1), so that capabilities can be pooled."""
    scores, failures = (_fractional_ranks([pair[side] for pair in pairs]) for side in (0, 1))
    return list(zip(scores, failures, strict=True))


def _fractional_ranks(values: Sequence[float]) -> list[float]:
    array = np.asarray(values, dtype=np.float64)
    below = np.searchsorted(np.sort(array), array, side="left")
    up_to = np.searchsorted(np.sort(array), array, side="right")
    return ((below + up_to) / 2.0 / max(1, len(array))).tolist()


def _correlation(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """None for what does not exist: JSON has no NaN."""
    interval = spearman_interval([score for score, _ in pairs], [failure for _, failure in pairs])
    values = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {
        "num_samples": len(pairs),
        **{name: None if math.isnan(value) else value for name, value in values.items()},
    }


def _decide(correlation: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Whether the judge earned its right to prune, and the sentence that says so."""
    num_samples = correlation["num_samples"]
    if not num_samples:
        return None, (
            "The judge was not checked: no sample of the pilot has a score and a decided attempt."
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
