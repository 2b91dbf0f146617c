"""What to believe of a prompt that was never tried: learned from others of its stratum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.curriculum.inbox import Visits
from posttrain.curriculum.isotonic import isotonic
from posttrain.curriculum.posterior import Floats, Ints
from posttrain.records import Prompt

# Of the least and the greatest share of p's variance that lies within prompts: kappa is
# ratio / (1 - ratio), so from 0.01 (a prompt is either solved or out of reach) to 32.
_MIN_RATIO, _MAX_RATIO = 0.01, 0.97

Stratum = tuple[str, str, int]
"""Capability, level, bin of the difficulty tag (-1 without one)."""


class StratumPrior:
    """A Beta prior per stratum, from the first visits to its prompts.

    A stratum is capability x level x bin of the difficulty tag. Each first visit with c of n passes
    gives c / n and, unbiased, c (n - c) / (n (n - 1)) for p (1 - p); their means m and h over the
    stratum, older steps discounted, give the prior by the method of moments: mean m, strength
    kappa = r / (1 - r) with r = h / (m (1 - m)). First visits only, because what is chosen again is
    no sample of the stratum. Means of strata with few visits shrink towards the tag bin's over all
    capabilities (the map from tag to pass rate, kept monotone), or without tags towards the
    capability's, and these towards everyone's.
    """

    def __init__(
        self,
        *,
        mean: float,
        strength: float,
        shrinkage: float,
        memory: float,
    ) -> None:
        self._mean, self._ratio = mean, strength / (1.0 + strength)
        self._shrinkage = shrinkage
        self._kept = 1.0 - 1.0 / memory
        self.strata: list[Stratum] = []
        self._numbers: dict[Stratum, int] = {}
        self._step = 0
        self._num_S, self._rate_S = np.zeros(0), np.zeros(0)
        self._num_pairs_S, self._variance_S = np.zeros(0), np.zeros(0)
        self._parameters: tuple[Floats, Floats] | None = None

    def strata_of(self, prompts: Sequence[Prompt], bins: Ints) -> Ints:
        """(P,) each prompt's stratum, new ones made where needed."""
        found: list[int] = []
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

    def observe(self, visits: Visits, strata_N: Ints, first_N: Floats) -> None:
        """Count the visits that are a prompt's first."""
        if visits.step > self._step:
            faded = self._kept ** (visits.step - self._step)
            for sums_S in (self._num_S, self._rate_S, self._num_pairs_S, self._variance_S):
                sums_S *= faded
            self._step = visits.step
        c, n = visits.num_passed_N.astype(float), visits.num_decided_N.astype(float)
        np.add.at(self._num_S, strata_N, first_N)
        np.add.at(self._rate_S, strata_N, first_N * c / n)
        pairs_N = first_N * (n > 1)
        np.add.at(self._num_pairs_S, strata_N, pairs_N)
        np.add.at(
            self._variance_S, strata_N, pairs_N * c * (n - c) / (n * np.maximum(n - 1.0, 1.0))
        )
        self._parameters = None

    def parameters(self) -> tuple[Floats, Floats]:
        """(S,) means in (0, 1) and (S,) strengths kappa, in rollouts."""
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
        # Harder tags pass less: the map is monotone, and flat where tags tell nothing.
        mean_U[bins] = isotonic(mean_U[bins], num_U[bins] + k, increasing=False)
        ratio_U = _ratio(variance_U, pairs_U, mean_U, ratio, k)

        mean_S = _shrunk(self._rate_S, self._num_S, mean_U[self._parent_S], k)
        mean_S = np.clip(mean_S, 1e-3, 1.0 - 1e-3)
        ratio_S = _ratio(self._variance_S, self._num_pairs_S, mean_S, ratio_U[self._parent_S], k)
        return mean_S, ratio_S / (1.0 - ratio_S)

    def _by_parent(self, values_S: Floats) -> Floats:
        sums_U = np.bincount(self._parent_S, values_S, self._num_parents)
        return sums_U.astype(np.float64)

    def _index_parents(self) -> None:
        """A tag bin is the parent of its strata; without a tag, the capability is."""
        keys = [(0, b, "") if b >= 0 else (1, 0, capability) for capability, _, b in self.strata]
        parents = sorted(set(keys))
        numbers = {key: u for u, key in enumerate(parents)}
        self._parent_S = np.array([numbers[key] for key in keys], dtype=np.int64)
        self._num_parents = len(parents)
        self._bin_parents = np.array(
            [u for u, (kind, _, _) in enumerate(parents) if kind == 0], dtype=np.int64
        )
        self._parameters = None

    def state_dict(self) -> dict[str, Any]:
        """The sums of every stratum."""
        return {
            "step": self._step,
            "strata": [list(stratum) for stratum in self.strata],
            "num": self._num_S.copy(),
            "rate": self._rate_S.copy(),
            "num_pairs": self._num_pairs_S.copy(),
            "variance": self._variance_S.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; ValueError where its strata are others, as with other tags."""
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
    """(P,) the bin of each tag by rising difficulty; -1 where there is none (NaN)."""
    return np.where(np.isnan(tags_P), -1, np.searchsorted(edges, tags_P, side="right"))


def tag_edges(tags_P: Floats, num_bins: int) -> Floats:
    """Edges that put about equally many tagged prompts into each bin; fewer where tags repeat."""
    tagged = tags_P[~np.isnan(tags_P)]
    if not len(tagged):
        return np.zeros(0)
    edges = np.quantile(tagged, np.arange(1, num_bins) / num_bins)
    return np.unique(edges).astype(np.float64)


def _shrunk(total: Floats, num: Floats, towards: Floats | float, weight: float) -> Floats:
    return np.asarray((total + weight * towards) / (num + weight), dtype=np.float64)


def _ratio(
    variance: Floats, num: Floats, mean: Floats, towards: Floats | float, weight: float
) -> Floats:
    inner = np.maximum(mean * (1.0 - mean), 1e-6)
    ratio = _shrunk(variance, num, towards * inner, weight) / inner
    return np.asarray(np.clip(ratio, _MIN_RATIO, _MAX_RATIO), dtype=np.float64)
