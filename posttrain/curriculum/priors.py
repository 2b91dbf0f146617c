"""Beliefs about a prompt before its own rollouts: from its stratum, and from its likelihood."""

# scipy brings no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.curriculum.arrays import Floats, Ints, np
from posttrain.curriculum.beta import log_predictive
from posttrain.curriculum.counts import StepCounts
from posttrain.records import Prompt

Stratum = tuple[str, str, int]
"""Capability, level, bin of the difficulty tag (-1 without one)."""

_NUM_TAG_BINS = 10
# Steps after which a stratum's groups count for a third.
_STRATUM_MEMORY = 40.0
# Bounds of the share of p's variance that lies within prompts: kappa is ratio / (1 - ratio), so
# from 0.01 (a prompt is either solved or out of reach) to 32.
_MIN_RATIO, _MAX_RATIO = 0.01, 0.97

_MIN_PAIRS, _MAX_PAIRS = 24, 512
_NUM_MAP_BINS = 12
_MAX_MAP_STRENGTH = 32.0
# Weight left at each visited batch to the map's evidence so far.
_GAIN_KEPT = 0.97
# Few groups say little: until there are more, only a clear loss turns likelihoods off.
_SURE_NATS = 5.0


class StratumPrior:
    """A Beta prior per stratum, from the first visits to its prompts.

    A stratum is capability x level x bin of the difficulty tag. Each first visit with c of n passes
    gives c / n and, unbiased, c (n - c) / (n (n - 1)) for p (1 - p); their means m and h over the
    stratum, older steps discounted, give the prior by the method of moments: mean m, strength
    kappa = r / (1 - r) with r = h / (m (1 - m)). First visits only, because what is chosen again is
    no sample of the stratum. Means of strata with few visits shrink towards the tag bin's over all
    capabilities (the map from tag to pass rate, kept monotone), or without tags towards the
    capability's, and these towards the pool's.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        tags: Mapping[str, float],
        *,
        mean: float,
        strength: float,
        shrinkage: float,
    ) -> None:
        self._tags = tags
        if np.isinf(np.fromiter(tags.values(), np.float64, len(tags))).any():
            raise ValueError("a difficulty tag is infinite; give a number, or leave it out")
        self._mean, self._ratio = mean, strength / (1.0 + strength)
        self._shrinkage = shrinkage
        self._kept = 1.0 - 1.0 / _STRATUM_MEMORY
        self._edges = tag_edges(self._tags_of(prompts))
        self.strata: list[Stratum] = []
        self._numbers: dict[Stratum, int] = {}
        self._step = 0
        self._num_S, self._rate_S = np.zeros(0), np.zeros(0)
        self._num_pairs_S, self._variance_S = np.zeros(0), np.zeros(0)
        self._parameters: tuple[Floats, Floats] | None = None

    def strata_of(self, prompts: Sequence[Prompt]) -> Ints:
        """Return (P,) each prompt's stratum; new strata are made as needed."""
        found: list[int] = []
        bins = tag_bins(self._tags_of(prompts), self._edges)
        for prompt, tag_bin in zip(prompts, bins.tolist(), strict=True):
            level = "" if prompt.level is None else prompt.level
            stratum = (prompt.capability, level, tag_bin)
            number = self._numbers.get(stratum)
            if number is None:
                number = self._numbers[stratum] = len(self.strata)
                self.strata.append(stratum)
            found.append(number)
        new = np.zeros(len(self.strata) - len(self._num_S))
        self._num_S, self._rate_S = np.append(self._num_S, new), np.append(self._rate_S, new)
        self._num_pairs_S = np.append(self._num_pairs_S, new)
        self._variance_S = np.append(self._variance_S, new)
        self._index_parents()
        return np.array(found, dtype=np.int64)

    def observe(self, counts: StepCounts, strata_N: Ints, first_N: Floats) -> None:
        """Count the visits that are a prompt's first (`first_N` is 1)."""
        if counts.step > self._step:
            faded = self._kept ** (counts.step - self._step)
            for sums_S in (self._num_S, self._rate_S, self._num_pairs_S, self._variance_S):
                sums_S *= faded
            self._step = counts.step
        c, n = counts.num_passed_N.astype(float), counts.num_decided_N.astype(float)
        np.add.at(self._num_S, strata_N, first_N)
        np.add.at(self._rate_S, strata_N, first_N * c / n)
        pairs_N = first_N * (n > 1)
        np.add.at(self._num_pairs_S, strata_N, pairs_N)
        np.add.at(
            self._variance_S, strata_N, pairs_N * c * (n - c) / (n * np.maximum(n - 1.0, 1.0))
        )
        self._parameters = None

    def parameters(self) -> tuple[Floats, Floats]:
        """Return (S,) means in (0, 1) and (S,) strengths kappa, in rollouts."""
        if self._parameters is None:
            self._parameters = self._estimate()
        return self._parameters

    def _estimate(self) -> tuple[Floats, Floats]:
        k = self._shrinkage
        mean = _shrunk(self._rate_S.sum(), self._num_S.sum(), self._mean, 2.0)
        variance_0 = self._ratio * mean * (1.0 - mean)
        variance = _shrunk(self._variance_S.sum(), self._num_pairs_S.sum(), variance_0, 2.0)
        ratio = np.clip(variance / (mean * (1.0 - mean)), _MIN_RATIO, _MAX_RATIO)

        num_U, rate_U = self._by_parent(self._num_S), self._by_parent(self._rate_S)
        pairs_U, variance_U = self._by_parent(self._num_pairs_S), self._by_parent(self._variance_S)
        mean_U = _shrunk(rate_U, num_U, mean, k)
        bins = self._bin_parents
        # Harder tags pass less: the map is monotone, and flat where tags say nothing.
        mean_U[bins] = -_isotonic(-mean_U[bins], num_U[bins] + k)
        ratio_U = _ratio(variance_U, pairs_U, mean_U, ratio, k)

        mean_S = _shrunk(self._rate_S, self._num_S, mean_U[self._parent_S], k)
        mean_S = np.clip(mean_S, 1e-3, 1.0 - 1e-3)
        ratio_S = _ratio(self._variance_S, self._num_pairs_S, mean_S, ratio_U[self._parent_S], k)
        return mean_S, ratio_S / (1.0 - ratio_S)

    def _by_parent(self, values_S: Floats) -> Floats:
        sums_U = np.bincount(self._parent_S, values_S, self._num_parents)
        return sums_U.astype(np.float64)

    def _index_parents(self) -> None:
        """Number the parents: the tag bin of a stratum, or its capability without a tag."""
        keys = [(0, b, "") if b >= 0 else (1, 0, capability) for capability, _, b in self.strata]
        parents = sorted(set(keys))
        numbers = {key: u for u, key in enumerate(parents)}
        self._parent_S = np.array([numbers[key] for key in keys], dtype=np.int64)
        self._num_parents = len(parents)
        self._bin_parents = np.array(
            [u for u, (kind, _, _) in enumerate(parents) if kind == 0], dtype=np.int64
        )
        self._parameters = None

    def _tags_of(self, prompts: Sequence[Prompt]) -> Floats:
        """Return (P,) tags, NaN for prompts without one."""
        return np.array([self._tags.get(p.prompt_id, math.nan) for p in prompts], dtype=np.float64)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of every stratum."""
        return {
            "step": self._step,
            "strata": [list(stratum) for stratum in self.strata],
            "num": self._num_S.copy(),
            "rate": self._rate_S.copy(),
            "num_pairs": self._num_pairs_S.copy(),
            "variance": self._variance_S.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; ValueError if its strata differ, as with other tags."""
        saved = [tuple(stratum) for stratum in state["strata"]]
        if saved != self.strata:
            odd = sorted(set(saved) ^ set(self.strata)) or self.strata
            raise ValueError(
                "the saved curriculum has other strata (capability, level, bin of the tag): "
                f"{odd[0]} is on one side only; were levels or difficulty tags changed?"
            )
        self._step = int(state["step"])
        self._num_S, self._rate_S = np.array(state["num"]), np.array(state["rate"])
        self._num_pairs_S = np.array(state["num_pairs"])
        self._variance_S = np.array(state["variance"])
        self._parameters = None


def tag_bins(tags_P: Floats, edges: Floats) -> Ints:
    """Return (P,) the bin of each tag by rising difficulty; -1 without one (NaN)."""
    return np.where(np.isnan(tags_P), -1, np.searchsorted(edges, tags_P, side="right"))


def tag_edges(tags_P: Floats) -> Floats:
    """Return edges of about equally full bins of tagged prompts; fewer edges if tags repeat."""
    tagged = tags_P[~np.isnan(tags_P)]
    if not len(tagged):
        return np.zeros(0)
    edges = np.quantile(tagged, np.arange(1, _NUM_TAG_BINS) / _NUM_TAG_BINS)
    return np.unique(edges).astype(np.float64)


class LikelihoodMap:
    """Per capability a monotone map from log-likelihood to a Beta belief, refitted as groups come.

    From the latest pairs of a log-likelihood and the group that followed: pass rates of quantile
    bins, made monotone, interpolated between. The strength kappa comes by the method of moments, as
    a stratum's does: the variance left within prompts after the map has spoken. Its weight is its
    share of the predictive evidence: w = 1 / (1 + exp(-d)), d the decayed sum of nats by which its
    predictions beat those made without it. Once it is tested and has lost, or if no prompt asked
    about had an answer to score, no more likelihoods are asked for.
    """

    def __init__(self, num_capabilities: int) -> None:
        self._logprob = [np.zeros(0) for _ in range(num_capabilities)]
        self._num_passed = [np.zeros(0, dtype=np.int64) for _ in range(num_capabilities)]
        self._num_decided = [np.zeros(0, dtype=np.int64) for _ in range(num_capabilities)]
        self._gain_C = np.zeros(num_capabilities)
        self._num_tested_C = np.zeros(num_capabilities, dtype=np.int64)
        self._num_scored_C = np.zeros(num_capabilities, dtype=np.int64)
        self._num_unscorable_C = np.zeros(num_capabilities, dtype=np.int64)
        self._maps: list[tuple[Floats, Floats, float] | None] = [None] * num_capabilities

    @property
    def weight_C(self) -> Floats:
        """Return (C,) the weight in [0, 1] of each capability's map; 0 until it can be fitted."""
        fitted = np.array([m is not None for m in self._maps])
        weight = 1.0 / (1.0 + np.exp(-np.clip(self._gain_C, -30.0, 30.0)))
        return np.where(fitted, weight, 0.0)

    def is_useful(self, capability: int) -> bool:
        """Return whether to ask for more: not tested yet, or better than without."""
        if self._num_unscorable_C[capability] >= _MIN_PAIRS and not self._num_scored_C[capability]:
            return False
        lost = -_SURE_NATS if self._num_tested_C[capability] < 8 * _MIN_PAIRS else 0.0
        return not self.is_tested(capability) or self._gain_C[capability] > lost

    def is_tested(self, capability: int) -> bool:
        """Return whether enough groups followed a prediction to judge the map."""
        return bool(self._num_tested_C[capability] >= 2 * _MIN_PAIRS)

    def beliefs(self, capability: int, logprobs: Floats) -> tuple[Floats, Floats]:
        """Return the map's means and strengths; NaN if it has none yet."""
        fitted = self._maps[capability]
        if fitted is None:
            return np.full(len(logprobs), np.nan), np.full(len(logprobs), np.nan)
        at, rates, strength = fitted
        return np.interp(logprobs, at, rates), np.full(len(logprobs), strength)

    def count_scored(self, num_scored_C: Ints, num_unscorable_C: Ints) -> None:
        """Count prompts with a likelihood, and prompts without an answer to score."""
        self._num_scored_C += num_scored_C
        self._num_unscorable_C += num_unscorable_C

    def observe(
        self,
        capability: int,
        logprobs: Floats,
        num_passed: Ints,
        num_decided: Ints,
        prior: tuple[Floats, Floats],
        evidence: tuple[Floats, Floats],
    ) -> None:
        """Learn from visits to scored prompts.

        `prior` is alpha and beta without the map, `evidence` the prompts' own passes and fails: the
        map is held against the prior, each with the same evidence.
        """
        if not len(logprobs):
            return
        fitted = self._maps[capability]
        if fitted is not None:
            mean, strength = self.beliefs(capability, logprobs)
            passed, failed = evidence
            ours = log_predictive(
                mean * strength + passed, (1 - mean) * strength + failed, num_passed, num_decided
            )
            theirs = log_predictive(prior[0] + passed, prior[1] + failed, num_passed, num_decided)
            gain = float(np.sum(ours - theirs))
            self._gain_C[capability] = _GAIN_KEPT * self._gain_C[capability] + gain
            self._num_tested_C[capability] += len(logprobs)
        kept = slice(-_MAX_PAIRS, None)
        c = capability
        self._logprob[c] = np.append(self._logprob[c], logprobs)[kept]
        self._num_passed[c] = np.append(self._num_passed[c], num_passed)[kept]
        self._num_decided[c] = np.append(self._num_decided[c], num_decided)[kept]
        self._maps[c] = _fit(self._logprob[c], self._num_passed[c], self._num_decided[c])

    def state_dict(self) -> dict[str, Any]:
        """Return the pairs and the evidence for the map."""
        return {
            "logprob": list(self._logprob),
            "num_passed": list(self._num_passed),
            "num_decided": list(self._num_decided),
            "gain": self._gain_C.copy(),
            "num_tested": self._num_tested_C.copy(),
            "num_told": self._num_scored_C.copy(),
            "num_mute": self._num_unscorable_C.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._logprob = [np.array(values) for values in state["logprob"]]
        self._num_passed = [np.array(values) for values in state["num_passed"]]
        self._num_decided = [np.array(values) for values in state["num_decided"]]
        self._gain_C = np.array(state["gain"])
        self._num_tested_C = np.array(state["num_tested"])
        self._num_scored_C = np.array(state["num_told"])
        self._num_unscorable_C = np.array(state["num_mute"])
        pairs = zip(self._logprob, self._num_passed, self._num_decided, strict=True)
        self._maps = [_fit(*three) for three in pairs]


def _fit(
    logprob: Floats, num_passed: Ints, num_decided: Ints
) -> tuple[Floats, Floats, float] | None:
    """Return the map's log-likelihoods, pass rates and strength; None from too few pairs."""
    if len(logprob) < _MIN_PAIRS:
        return None
    order = np.lexsort((num_decided, num_passed, logprob))
    parts = np.array_split(order, min(_NUM_MAP_BINS, len(order) // 8))
    at = np.array([logprob[part].mean() for part in parts])
    num = np.array([float(num_decided[part].sum()) for part in parts])
    passed = np.array([float(num_passed[part].sum()) for part in parts])
    mean = passed.sum() / num.sum()
    rates = np.clip(_isotonic((passed + mean) / (num + 1.0), num), 1e-3, 1.0 - 1e-3)
    predicted = np.interp(logprob, at, rates)
    several = num_decided > 1
    n, c = num_decided[several].astype(float), num_passed[several].astype(float)
    inner = np.sum(c * (n - c) / (n * (n - 1.0)))
    possible = np.sum(predicted[several] * (1.0 - predicted[several]))
    most = _MAX_MAP_STRENGTH / (1 + _MAX_MAP_STRENGTH)
    ratio = np.clip((inner + 0.1) / (possible + 0.2), _MIN_RATIO, most)
    return at, rates, float(ratio / (1.0 - ratio))


def _isotonic(values: Floats, weights: Floats) -> Floats:
    """Return the rising sequence with the least weighted squared distance from `values`."""
    from scipy.optimize import isotonic_regression

    if not len(values):
        return values
    return np.asarray(isotonic_regression(values, weights=weights).x, dtype=np.float64)


def _shrunk(total: Floats, num: Floats, towards: Floats | float, weight: float) -> Floats:
    return np.asarray((total + weight * towards) / (num + weight), dtype=np.float64)


def _ratio(
    variance: Floats, num: Floats, mean: Floats, towards: Floats | float, weight: float
) -> Floats:
    inner = np.maximum(mean * (1.0 - mean), 1e-6)
    ratio = _shrunk(variance, num, towards * inner, weight) / inner
    return np.asarray(np.clip(ratio, _MIN_RATIO, _MAX_RATIO), dtype=np.float64)
