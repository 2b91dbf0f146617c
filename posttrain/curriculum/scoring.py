"""What a group of a prompt is worth to training now: expected signal, times the band."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from posttrain.curriculum.beliefs import Beliefs
from posttrain.curriculum.pool import Indices, Mask, Pool
from posttrain.curriculum.posterior import Floats
from posttrain.curriculum.selection import band, expected_signal, largest_gumbels, top

# Of the prompts with evidence of their own, so many are looked at for one proposal, by chance.
_MAX_SCORED = 16_384


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Some of the known prompts, scored for one proposal."""

    index_N: Indices
    score_N: Floats
    log_share: float
    """Log of known prompts per candidate."""


class Scoring:
    """Scores of known prompts and of strata; untried prompts share their stratum's."""

    def __init__(self, beliefs: Beliefs, pool: Pool, *, width: float, temperature: float) -> None:
        self.beliefs, self.pool = beliefs, pool
        self._width, self._temperature = width, temperature

    def known(self) -> Candidates:
        """Prompts with evidence of their own."""
        beliefs, pool = self.beliefs, self.pool
        known = beliefs.evidence.known.astype(np.int64)
        log_share = 0.0
        if len(known) > _MAX_SCORED:
            drawn = np.unique(pool.rng.integers(len(known), size=_MAX_SCORED))
            log_share = math.log(len(known) / len(drawn))
            known = known[drawn]
        alpha, beta = beliefs.of(known)
        centre = beliefs.centre_C()[np.maximum(pool.capability_P[known], 0)]
        return Candidates(
            index_N=known,
            score_N=self._scores(alpha, beta, centre),
            log_share=log_share,
        )

    def of_strata(self) -> Floats:
        """Per stratum, of its untried prompts."""
        beliefs = self.beliefs
        centre_S = beliefs.centre_C()[np.maximum(beliefs.capability_S(), 0)]
        return self._scores(*beliefs.of_strata(), centre_S)

    def keys(self, scores: Floats) -> Floats:
        """What Gumbel noise is added to, so that prompts come by score ** (1 / temperature)."""
        with np.errstate(divide="ignore"):
            return np.log(scores) / self._temperature

    def untried(
        self, capability: int, num: int, taken_P: Mask, *, num_S: Indices | None = None
    ) -> list[tuple[int, float]]:
        """Untried prompts of a capability by their stratum's score; they are marked as taken.

        Of `num_S` per stratum, which are all that are untried unless it is given.
        """
        untried = self.beliefs.untried
        strata = self.beliefs.strata_of(capability)
        scores = self.of_strata()[strata]
        left = (untried.num_S if num_S is None else num_S)[strata]
        keys = self.keys(scores)[:, None] + largest_gumbels(left, num, self.pool.rng)
        first = top(keys.ravel(), num, np.zeros(keys.size))
        first = first[keys.ravel()[first] > -np.inf]
        found: list[tuple[int, float]] = []
        for row in np.unique(first // max(num, 1)).tolist():
            new = untried.first(int(strata[row]), int(np.sum(first // num == row)), taken_P)
            taken_P[new] = True
            found += [(i, float(scores[row])) for i in new.tolist()]
        return found

    def _scores(self, alpha: Floats, beta: Floats, centre: Floats) -> Floats:
        return expected_signal(alpha, beta, self.beliefs.num_generations) * band(
            alpha, beta, centre=centre, width=self._width
        )
