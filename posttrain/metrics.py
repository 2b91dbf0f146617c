"""Measures of scored rollouts, each with its uncertainty; numpy, and scipy where it is used."""

# scipy brings no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.records import Prompt, RolloutGroup

Floats = npt.NDArray[np.float64]
GroupsByCapability = Mapping[str, Sequence[RolloutGroup]]

# Resamples are drawn in blocks of at most this many cells, so that memory does not grow with the
# data.
_BLOCK_CELLS = 2_000_000
_NUM_RESAMPLES = 10_000
_MAX_CONSTANTS = 64
_TAIL = (1.0 - 0.95) / 2.0
"""Probability left out at each end of an interval, which is thus a 95 % one."""
# With fewer values that differ from the commonest, a bootstrap covers the truth too seldom.
_MIN_DIFFERING = 5
_SAME = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """An estimate with its confidence interval; NaN where there is nothing to estimate from.

    >>> Interval(mean=0.5, low=0.4, high=0.6).excludes_zero
    True
    """

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Return True if the whole interval lies on one side of zero."""
        return self.low > 0.0 or self.high < 0.0


_NOTHING = Interval(mean=math.nan, low=math.nan, high=math.nan)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the unbiased chance that at least one of k samples passes; NaN where num_samples < k.

    1 - C(n-c, k) / C(n, k), as a product that does not overflow (Chen et al. 2021, arXiv
    2107.03374).

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 4)
    (0.25, 1.0)
    """
    if k < 1 or not 0 <= num_correct <= num_samples:
        raise ValueError(
            f"pass_at_k needs k >= 1 and 0 <= num_correct <= num_samples, not "
            f"num_samples={num_samples}, num_correct={num_correct}, k={k}"
        )
    if num_samples < k:
        return math.nan
    num_failed = num_samples - num_correct
    if num_failed < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / n for n in range(num_failed + 1, num_samples + 1))


def pass_rates(groups: Iterable[RolloutGroup]) -> dict[str, float]:
    """Return the pass rate c/n of every prompt with a decided rollout, over its decided ones."""
    return {
        prompt_id: passed / decided
        for prompt_id, (passed, decided) in _counts(groups).items()
        if decided
    }


def pass_rate_interval(
    groups: Sequence[RolloutGroup], *, seed: int = 0, num_resamples: int = _NUM_RESAMPLES
) -> Interval:
    """Return the mean pass rate over prompts, with a percentile bootstrap over prompts.

    Undecided rollouts are missing, not failed. Rates that hardly differ are not resampled, see
    `_macro_interval`: where all are 0 (or 1) the open end is the exact binomial bound over prompts,
    0.025^(1/P).
    """
    rates_P = np.array(list(pass_rates(groups).values()), dtype=np.float64)
    return _macro_interval([rates_P], 0.0, seed, num_resamples)


def macro_pass_at_1(groups_by_capability: GroupsByCapability) -> Interval:
    """Return the mean over capabilities of their mean pass rate, bootstrapped over prompts.

    Prompts are drawn inside each capability. NaN where a capability has no decided rollout: its
    average does not exist.
    """
    rates_C = [
        np.array(list(pass_rates(groups).values()), dtype=np.float64)
        for _, groups in sorted(groups_by_capability.items())
    ]
    return _macro_interval(rates_C, 0.0)


def paired_difference(
    before: GroupsByCapability, after: GroupsByCapability, *, seed: int = 0
) -> Interval:
    """Return the macro-average pass rate after minus before, with a paired bootstrap over prompts.

    A prompt that either side could not decide is left out. Raises ValueError where the two sides
    were not measured on the same prompts.
    """
    if set(before) != set(after):
        raise ValueError(
            f"capabilities differ: {sorted(before)} before, {sorted(after)} after; "
            "compare the same suite"
        )
    differences_C: list[Floats] = []
    for capability in sorted(before):
        ids_before = {g.prompt_id for g in before[capability]}
        ids_after = {g.prompt_id for g in after[capability]}
        if ids_before != ids_after:
            raise ValueError(
                f"{capability}: {len(ids_before ^ ids_after)} prompts were measured "
                "on one side only; compare the same suite"
            )
        rates_before, rates_after = pass_rates(before[capability]), pass_rates(after[capability])
        shared = sorted(set(rates_before) & set(rates_after))
        differences_C.append(
            np.array([rates_after[i] - rates_before[i] for i in shared], dtype=np.float64)
        )
    return _macro_interval(differences_C, -1.0, seed)


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the rank correlation, ties at their average rank; NaN if either side is constant."""
    from scipy.stats import rankdata

    x_N, y_N = (rankdata(side) for side in _paired_arrays(x, y))
    if len(x_N) < 2 or np.ptp(x_N) == 0.0 or np.ptp(y_N) == 0.0:
        return math.nan
    # Not scipy's spearmanr, which leaves a perfect order at 1 - 2e-16.
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    return float(x_N @ y_N / math.sqrt(float(x_N @ x_N) * float(y_N @ y_N)))


def spearman_interval(x: Sequence[float], y: Sequence[float], *, num_groups: int = 1) -> Interval:
    """Return Spearman's rank correlation with its interval.

    By Bonett and Wright (2000, Psychometrika 65), atanh(r) is normal with variance
    (1 + r^2 / 2) / (N - 3). Where the values are ranks within `num_groups` groups, N counts one
    less for each group but the first, as in a partial correlation. An r of 1 or -1 counts as half
    a step less, 6 / (N^3 - N), the continuity correction of Kendall's Rank Correlation Methods: no
    order of few pairs is certain. Where N - 3 is not above 0 the interval is -1 to 1.
    """
    mean = spearman(x, y)
    if math.isnan(mean):
        return _NOTHING
    num_pairs = len(x)
    freedom = num_pairs - (num_groups - 1) - 3
    if freedom <= 0:
        return Interval(mean=mean, low=-1.0, high=1.0)
    most = 1.0 - 6.0 / (num_pairs**3 - num_pairs)
    centre = math.atanh(min(most, max(-most, mean)))
    width = NormalDist().inv_cdf(1.0 - _TAIL) * math.sqrt((1.0 + mean**2 / 2.0) / freedom)
    low, high = math.tanh(centre - width), math.tanh(centre + width)
    return Interval(mean=mean, low=min(low, mean), high=max(high, mean))


def rise_p_value(hits: int, num: int, hits_before: int, num_before: int) -> float:
    """Return the p-value of a share of `hits` in `num` that is higher than before.

    Fisher's exact test, one-sided. 1 if there is nothing to compare.
    """
    from scipy.stats import fisher_exact

    if not num or not num_before:
        return 1.0
    table = [[hits, num - hits], [hits_before, num_before - hits_before]]
    found: Any = fisher_exact(table, alternative="greater")
    return float(found.pvalue)


def best_constant_answer(
    prompts: Sequence[Prompt],
    passes: Callable[[Prompt, str], bool],
    *,
    groups: Iterable[RolloutGroup] = (),
) -> float:
    """Return the share of prompts that the best single answer would pass; NaN without prompts.

    Candidates are the references and the answers seen in `groups`, the 64 commonest of each.
    """
    if not prompts:
        return math.nan
    references = Counter(prompt.reference for prompt in prompts)
    answers = Counter(rollout.text for group in groups for rollout in group.rollouts)
    candidates = dict.fromkeys(
        text for counter in (references, answers) for text, _ in counter.most_common(_MAX_CONSTANTS)
    )
    best = 0
    for text in candidates:
        num_passed = 0
        for num_left, prompt in zip(range(len(prompts), 0, -1), prompts, strict=True):
            if num_passed + num_left <= best:
                break
            num_passed += passes(prompt, text)
        best = max(best, num_passed)
    return best / len(prompts)


def mean_pass_at_k(groups: Iterable[RolloutGroup], k: int) -> float:
    """Return the mean unbiased pass@k of prompts with k decided rollouts; NaN without any."""
    values = [
        pass_at_k(decided, passed, k)
        for passed, decided in _counts(groups).values()
        if decided >= k
    ]
    return sum(values) / len(values) if values else math.nan


def _counts(groups: Iterable[RolloutGroup]) -> dict[str, tuple[int, int]]:
    """Return (passed, decided) by prompt_id; several groups of one prompt count together."""
    counts: dict[str, tuple[int, int]] = {}
    for group in groups:
        passed, decided = counts.get(group.prompt_id, (0, 0))
        counts[group.prompt_id] = (passed + group.num_passed, decided + group.num_decided)
    return counts


def _resampled_means(values_N: Floats, rng: np.random.Generator, num_resamples: int) -> Floats:
    """Return (num_resamples,) means of resamples with replacement."""
    n = len(values_N)
    block = max(1, _BLOCK_CELLS // n)
    means: list[Floats] = []
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        means.append(values_N[rng.integers(0, n, (size, n))].mean(axis=1))
    return np.concatenate(means)


def _macro_interval(
    values_C: Sequence[Floats], least: float, seed: int = 0, num_resamples: int = _NUM_RESAMPLES
) -> Interval:
    """Return the mean over capabilities of the mean of their values, with its interval.

    Values lie between `least` and 1. The ends are percentiles of means that are drawn for each
    capability and averaged. They are resampled means, the bootstrap's, where at least five values
    differ from the commonest. Where fewer do, resamples say too little of values yet unseen: the
    means are drawn from the Bayesian bootstrap (Rubin 1981) with one value more, `least` for the
    lower end and 1 for the upper (Gaffke 2005; Learned-Miller and Thomas 2019, arXiv 1905.06208).
    Of values 0 and 1 this is Clopper and Pearson's interval, and averaging its draws is melding
    (Fay, Proschan and Brittain 2015).
    """
    if not values_C or any(len(values_N) == 0 for values_N in values_C):
        return _NOTHING
    mean = float(np.mean([values_N.mean() for values_N in values_C]))
    if len(values_C) == 1 and np.ptp(values_C[0]) < _SAME:
        reach = 1.0 - _TAIL ** (1.0 / len(values_C[0]))
        return Interval(
            mean=mean, low=mean - reach * (mean - least), high=mean + reach * (1.0 - mean)
        )
    rng = np.random.default_rng(seed)
    draws_C = [_drawn_means(values_N, least, rng, num_resamples) for values_N in values_C]
    lower: Floats = np.mean([lower for lower, _ in draws_C], axis=0)
    upper: Floats = np.mean([upper for _, upper in draws_C], axis=0)
    return Interval(
        mean=mean,
        low=float(np.quantile(lower, _TAIL)),
        high=float(np.quantile(upper, 1.0 - _TAIL)),
    )


def _drawn_means(
    values_N: Floats, least: float, rng: np.random.Generator, num_resamples: int
) -> tuple[Floats, Floats]:
    """Return draws of the mean for the lower and for the upper end, each (num_resamples,)."""
    # Differences of rates that are equal may differ in the last bit.
    distinct_D, counts_D = np.unique(np.round(values_N / _SAME) * _SAME, return_counts=True)
    if len(values_N) - counts_D.max() >= _MIN_DIFFERING:
        resampled = _resampled_means(values_N, rng, num_resamples)
        return resampled, resampled
    weights: Floats = rng.dirichlet([*counts_D, 1], num_resamples)
    seen: Floats = weights[:, :-1] @ distinct_D
    unseen = weights[:, -1]
    return seen + unseen * least, seen + unseen


def _paired_arrays(x: Sequence[float], y: Sequence[float]) -> tuple[Floats, Floats]:
    x_N, y_N = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x_N.shape != y_N.shape:
        raise ValueError(f"x and y must be paired, not of lengths {len(x_N)} and {len(y_N)}")
    if np.isnan(x_N).any() or np.isnan(y_N).any():
        raise ValueError("a rank correlation has no place for NaN: leave such pairs out")
    return x_N, y_N
