"""Measures of scored rollouts, each with its uncertainty; pure numpy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0.0 or self.high < 0.0


_NOTHING = Interval(mean=math.nan, low=math.nan, high=math.nan)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The unbiased chance that at least one of k samples passes; NaN where num_samples < k.

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
    """Pass rate c/n per prompt over its decided rollouts; a prompt without a decided one is left
    out.
    """
    return {
        prompt_id: passed / decided
        for prompt_id, (passed, decided) in _counts(groups).items()
        if decided
    }


def pass_rate_interval(
    groups: Sequence[RolloutGroup],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    num_resamples: int = _NUM_RESAMPLES,
) -> Interval:
    """Mean pass rate over prompts, with a percentile bootstrap over prompts.

    Undecided rollouts are missing, not failed. Where every prompt has rate 0 (or 1) resampling
    shows no spread; the open end is then the exact binomial bound over prompts, (alpha/2)^(1/P).
    """
    rates_P = np.array(list(pass_rates(groups).values()), dtype=np.float64)
    if not len(rates_P):
        return _NOTHING
    alpha = 1.0 - confidence
    reach = 1.0 - (alpha / 2.0) ** (1.0 / len(rates_P))
    if np.all(rates_P == 0.0):
        return Interval(mean=0.0, low=0.0, high=reach)
    if np.all(rates_P == 1.0):
        return Interval(mean=1.0, low=1.0 - reach, high=1.0)
    rng = np.random.default_rng(seed)
    return _percentiles(
        float(rates_P.mean()), _resampled_means(rates_P, rng, num_resamples), confidence
    )


def macro_pass_at_1(
    groups_by_capability: GroupsByCapability, *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Mean over capabilities of their mean pass rate, bootstrapped over prompts inside each
    capability.

    NaN where a capability has no decided rollout: its average does not exist.
    """
    rates_C = [
        np.array(list(pass_rates(groups).values()), dtype=np.float64)
        for _, groups in sorted(groups_by_capability.items())
    ]
    return _macro_interval(rates_C, confidence, seed)


def paired_difference(
    before: GroupsByCapability,
    after: GroupsByCapability,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Macro-average pass rate after minus before, with a paired bootstrap over the prompts both
    share.

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
    return _macro_interval(differences_C, confidence, seed)


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation with average ranks for ties; NaN where either side is constant."""
    x_N, y_N = _paired_arrays(x, y)
    if len(x_N) < 2:
        return math.nan
    everyone_1_N = np.arange(len(x_N))[None, :]
    return float(_spearman_rows(_dense_ranks(x_N), _dense_ranks(y_N), everyone_1_N)[0])


def spearman_interval(
    x: Sequence[float],
    y: Sequence[float],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    num_resamples: int = 2_000,
) -> Interval:
    """Spearman's rank correlation with a percentile bootstrap over the pairs.

    Resamples in which one side is constant have no correlation and are left out of the percentiles.
    """
    mean = spearman(x, y)
    if math.isnan(mean):
        return _NOTHING
    x_N, y_N = _paired_arrays(x, y)
    dense_x_N, dense_y_N = _dense_ranks(x_N), _dense_ranks(y_N)
    rng = np.random.default_rng(seed)
    rows = [
        _spearman_rows(dense_x_N, dense_y_N, rng.integers(0, len(x_N), (block, len(x_N))))
        for block in _blocks(num_resamples, len(x_N))
    ]
    resampled = np.concatenate(rows)
    defined = resampled[~np.isnan(resampled)]
    return _percentiles(mean, defined, confidence) if len(defined) else _NOTHING


def rise_p_value(hits: int, num: int, hits_before: int, num_before: int) -> float:
    """The chance of a share at least as much higher than before, were both the same.

    Fisher's exact test, one-sided: with all hits dealt out at random, the hypergeometric chance
    that at least `hits` fall among the `num`. 1 where there is nothing to compare.
    """
    if not num or not num_before:
        return 1.0
    all_hits = hits + hits_before
    log_ways = _log_choose(num + num_before, all_hits)
    chances = (
        math.exp(_log_choose(num, k) + _log_choose(num_before, all_hits - k) - log_ways)
        for k in range(max(hits, all_hits - num_before), min(num, all_hits) + 1)
    )
    return min(1.0, math.fsum(chances))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def best_constant_answer(
    prompts: Sequence[Prompt],
    passes: Callable[[Prompt, str], bool],
    *,
    groups: Iterable[RolloutGroup] = (),
    max_candidates: int = 64,
) -> float:
    """Share of the prompts that one and the same answer would pass, for the best such answer.

    Candidates are the references and the answers seen in `groups`, the commonest `max_candidates`
    of each. NaN without prompts.
    """
    if not prompts:
        return math.nan
    references = Counter(prompt.reference for prompt in prompts)
    answers = Counter(rollout.text for group in groups for rollout in group.rollouts)
    candidates = dict.fromkeys(
        text for counter in (references, answers) for text, _ in counter.most_common(max_candidates)
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


def stage_table(
    stage: str,
    groups_by_capability: GroupsByCapability,
    *,
    pass_at: Sequence[int] = (),
    constant: Mapping[str, float] | None = None,
    seconds: float | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows of the final table for one stage: a row per capability, then their macro average.

    Keys: stage, capability, num_prompts, pass_at_1, low, high, pass_at_<k>..., constant, tokens,
    seconds. None (never NaN, which JSON lacks) where a value does not exist; seconds stand in the
    last row only.
    """
    constant = constant or {}
    rows: list[dict[str, Any]] = []
    for capability, groups in sorted(groups_by_capability.items()):
        row = _row(stage, capability, groups, pass_rate_interval(groups, seed=seed))
        row |= {f"pass_at_{k}": _number(mean_pass_at_k(groups, k)) for k in pass_at}
        row["constant"] = _number(constant.get(capability, math.nan))
        rows.append({**row, "seconds": None})
    everything = [group for groups in groups_by_capability.values() for group in groups]
    last = _row(
        stage, "macro average", everything, macro_pass_at_1(groups_by_capability, seed=seed)
    )
    for key in [*(f"pass_at_{k}" for k in pass_at), "constant"]:
        values = [row[key] for row in rows]
        last[key] = None if None in values or not values else sum(values) / len(values)
    return [*rows, {**last, "seconds": seconds}]


def mean_pass_at_k(groups: Iterable[RolloutGroup], k: int) -> float:
    """Mean unbiased pass@k over the prompts with at least k decided rollouts; NaN where there are
    none.
    """
    values = [
        pass_at_k(decided, passed, k)
        for passed, decided in _counts(groups).values()
        if decided >= k
    ]
    return sum(values) / len(values) if values else math.nan


def _row(
    stage: str, capability: str, groups: Sequence[RolloutGroup], interval: Interval
) -> dict[str, Any]:
    return {
        "stage": stage,
        "capability": capability,
        "num_prompts": len({group.prompt_id for group in groups}),
        "pass_at_1": _number(interval.mean),
        "low": _number(interval.low),
        "high": _number(interval.high),
        "tokens": sum(len(r.completion_ids) for group in groups for r in group.rollouts),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _counts(groups: Iterable[RolloutGroup]) -> dict[str, tuple[int, int]]:
    """(passed, decided) per prompt_id; several groups of one prompt count together."""
    counts: dict[str, tuple[int, int]] = {}
    for group in groups:
        passed, decided = counts.get(group.prompt_id, (0, 0))
        counts[group.prompt_id] = (passed + group.num_passed, decided + group.num_decided)
    return counts


def _blocks(num_resamples: int, num_values: int) -> Iterator[int]:
    block = max(1, _BLOCK_CELLS // num_values)
    for start in range(0, num_resamples, block):
        yield min(block, num_resamples - start)


def _resampled_means(values_N: Floats, rng: np.random.Generator, num_resamples: int) -> Floats:
    """(num_resamples,) means of resamples with replacement."""
    n = len(values_N)
    return np.concatenate(
        [
            values_N[rng.integers(0, n, (block, n))].mean(axis=1)
            for block in _blocks(num_resamples, n)
        ]
    )


def _macro_interval(values_C: Sequence[Floats], confidence: float, seed: int) -> Interval:
    if not values_C or any(len(values_N) == 0 for values_N in values_C):
        return _NOTHING
    rng = np.random.default_rng(seed)
    resampled = np.mean([_resampled_means(v, rng, _NUM_RESAMPLES) for v in values_C], axis=0)
    return _percentiles(float(np.mean([v.mean() for v in values_C])), resampled, confidence)


def _percentiles(mean: float, resampled: Floats, confidence: float) -> Interval:
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(resampled, [tail, 1.0 - tail])
    return Interval(mean=mean, low=float(low), high=float(high))


def _paired_arrays(x: Sequence[float], y: Sequence[float]) -> tuple[Floats, Floats]:
    x_N, y_N = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x_N.shape != y_N.shape:
        raise ValueError(f"x and y must be paired, not of lengths {len(x_N)} and {len(y_N)}")
    if np.isnan(x_N).any() or np.isnan(y_N).any():
        raise ValueError("a rank correlation has no place for NaN: leave such pairs out")
    return x_N, y_N


def _dense_ranks(values_N: Floats) -> npt.NDArray[np.int64]:
    """0 for the smallest distinct value, 1 for the next, ..."""
    return np.unique(values_N, return_inverse=True)[1].astype(np.int64)


def _average_ranks(dense_B_N: npt.NDArray[np.int64]) -> Floats:
    """Average ranks within each row, from dense ranks: counting replaces sorting."""
    num_rows = len(dense_B_N)
    num_distinct = int(dense_B_N.max()) + 1
    flat = (dense_B_N + np.arange(num_rows)[:, None] * num_distinct).ravel()
    counts_B_D = np.bincount(flat, minlength=num_rows * num_distinct).reshape(
        num_rows, num_distinct
    )
    below_B_D = np.cumsum(counts_B_D, axis=1) - counts_B_D
    rank_B_D = below_B_D + (counts_B_D + 1) / 2.0
    return np.take_along_axis(rank_B_D, dense_B_N, axis=1)


def _spearman_rows(
    dense_x_N: npt.NDArray[np.int64],
    dense_y_N: npt.NDArray[np.int64],
    index_B_N: npt.NDArray[np.int64],
) -> Floats:
    """Pearson correlation of the average ranks of each row's resample; NaN for a constant side."""
    x_B_N = _average_ranks(dense_x_N[index_B_N])
    y_B_N = _average_ranks(dense_y_N[index_B_N])
    x_B_N -= x_B_N.mean(axis=1, keepdims=True)
    y_B_N -= y_B_N.mean(axis=1, keepdims=True)
    spread_B = np.sqrt((x_B_N**2).sum(axis=1) * (y_B_N**2).sum(axis=1))
    together_B = (x_B_N * y_B_N).sum(axis=1)
    return np.divide(
        together_B, spread_B, out=np.full(len(spread_B), np.nan), where=spread_B > 1e-12
    )
