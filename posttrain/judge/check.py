"""Check a judge: the model attempts some samples; its failures are correlated with the scores."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from posttrain.data import prompt_of
from posttrain.engines import Engine, SamplingRequest
from posttrain.engines.rollouts import roll_out_in_batches
from posttrain.lengths import tokens_if_too_long
from posttrain.metrics import Interval, pass_rates, spearman_interval
from posttrain.prune import PruneResult
from posttrain.recipe.schema import MIN_MEASURED, JudgeCheck
from posttrain.records import Prompt, RolloutGroup, Sample, Verdict

_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def attempt_samples(
    samples: Sequence[Sample],
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    spec: JudgeCheck,
    *,
    max_model_len: int,
    seed: int,
) -> list[RolloutGroup]:
    """Let the engine's model attempt up to `num_samples` samples that have a verifier.

    Samples whose question fills `max_model_len` tokens are not chosen. Capabilities get equal
    numbers as far as their samples reach. In the groups, prompt_id is the sample's id, step is 0.
    """
    chosen = pilot_samples(
        [
            sample
            for sample in samples
            if sample.verifier is not None
            and tokens_if_too_long(_task(sample).messages, tokenizer, max_model_len) is None
        ],
        spec.num_samples,
        seed=seed,
    )
    request = SamplingRequest(
        num_generations=spec.num_generations, max_tokens=spec.max_tokens, seed=seed
    )
    tried = roll_out_in_batches(
        [_task(sample) for sample in chosen],
        engine,
        tokenizer,
        request,
        label="judge pilot",
        after_batch="judge.after_pilot_generate",
    )
    return [
        dataclasses.replace(group, prompt_id=sample.sample_id)
        for sample, group in zip(chosen, tried, strict=True)
    ]


def pilot_samples(samples: Sequence[Sample], num_samples: int, *, seed: int) -> list[Sample]:
    """Choose samples at random, capabilities taking turns."""
    by_capability: dict[str, list[Sample]] = {}
    for sample in samples:
        by_capability.setdefault(sample.capability, []).append(sample)
    rng = random.Random(seed)
    for _, of_one in sorted(by_capability.items()):
        rng.shuffle(of_one)
    in_turn = [
        (turn, capability, sample)
        for capability, of_one in by_capability.items()
        for turn, sample in enumerate(of_one)
    ]
    in_turn.sort(key=lambda entry: entry[:2])
    return [sample for _, _, sample in in_turn[:num_samples]]


def _task(sample: Sample) -> Prompt:
    prompt = prompt_of(sample)
    assert prompt is not None, "the pilot takes only samples with a verifier"
    return prompt


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """Agreement of a judge's scores with measured failure rates.

    >>> CheckResult(earned=None, verdict="The judge was not checked.", spearman={}).earned is None
    True
    """

    earned: bool | None
    """True if the judge passes its check; None where that cannot be decided."""
    verdict: str
    """The same in a sentence, with its numbers."""
    spearman: Mapping[str, Any]
    """Rank correlations `overall`, `within`, and `capabilities` with one each; each correlation
    has num_samples, mean, low and high."""


def check_judge(
    samples: Sequence[Sample],
    verdicts: Sequence[Verdict],
    pilot_groups: Sequence[RolloutGroup],
) -> CheckResult:
    """Correlate scores with the failure rates measured in the pilot.

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
    earned, words = _decide(decisive, num_measured)
    spearman = {
        "overall": _correlation(list(measured.values())),
        "within": decisive,
        "capabilities": {c: _correlation(pairs) for c, pairs in pairs_of.items()},
    }
    return CheckResult(earned=earned, verdict=words, spearman=spearman)


def judge_summary(
    samples: Sequence[Sample],
    verdicts: Sequence[Verdict],
    check: CheckResult,
    prune_result: PruneResult,
) -> dict[str, Any]:
    """Summarise judging and pruning as JSON values.

    Keys: `capabilities` (per capability num_samples, num_kept, num_dropped, num_unscored, cut,
    score_quantiles), `unscored_reasons`, and `spearman`, `earned` and `verdict` of the check.
    """
    capability_of = {sample.sample_id: sample.capability for sample in samples}
    score_of = {v.sample_id: v.score for v in verdicts if v.score is not None}
    return {
        "capabilities": {
            capability: _counts(capability, capability_of, score_of, prune_result)
            for capability in sorted(set(capability_of.values()))
        },
        "unscored_reasons": _tally(row.reason for row in prune_result.unscored),
        **dataclasses.asdict(check),
    }


def _ranked(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return scores and failure rates as ranks in (0, 1) with mean 0.5, to pool capabilities."""
    from scipy.stats import rankdata

    scores, failures = (
        ((rankdata([pair[side] for pair in pairs]) - 0.5) / max(1, len(pairs))).tolist()
        for side in (0, 1)
    )
    return list(zip(scores, failures, strict=True))


def _correlation(pairs: Sequence[tuple[float, float]], *, num_groups: int = 1) -> dict[str, Any]:
    """Return the correlation as JSON values; None replaces NaN."""
    interval = spearman_interval(
        [score for score, _ in pairs], [failure for _, failure in pairs], num_groups=num_groups
    )
    values = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {
        "num_samples": len(pairs),
        **{name: None if math.isnan(value) else value for name, value in values.items()},
    }


def _decide(correlation: Mapping[str, Any], num_capabilities: int) -> tuple[bool | None, str]:
    """Return True if the judge passes its check, None if it cannot be decided; and a sentence."""
    num_samples = correlation["num_samples"]
    if not num_samples:
        return None, (
            "The judge was not checked: no pilot sample has both a score and a decided attempt."
        )
    # The first sample of a capability has none to be compared with.
    least = MIN_MEASURED + num_capabilities - 1
    if num_samples < least:
        return None, (
            f"The judge was not checked: the pilot measured {num_samples} samples, and the check "
            f"needs {least}. Raise sft.pilot.num_samples by {least - num_samples} or more."
        )
    if correlation["mean"] is None:
        return None, (
            f"The judge could not be checked on the pilot's {num_samples} samples: within every "
            "capability all have the same score, or the same measured failure rate."
        )
    interval = Interval(mean=correlation["mean"], low=correlation["low"], high=correlation["high"])
    numbers = (
        f"rank correlation of score and measured failure rate within capabilities "
        f"{interval.mean:.2f}, 95 % interval {interval.low:.2f} to {interval.high:.2f}, "
        f"over {num_samples} samples"
    )
    if interval.low > 0.0:
        return True, f"The judge passes its check: {numbers}."
    if interval.high < 0.0:
        return False, (
            f"The judge fails its check, because it scores hard samples as easy: {numbers}."
        )
    return False, f"The judge fails its check, because the interval contains 0: {numbers}."


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
    """Count reasons, the commonest first; numbers inside a reason are replaced by #."""
    return dict(Counter(re.sub(r"\d+(\.\d+)?", "#", reason) for reason in reasons).most_common())
