"""prime-rl's pools: a prompt's weight follows from its latest group alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posttrain.curriculum.pool import Choice, Mask
from posttrain.curriculum.selection import gumbel_top
from posttrain.curriculum.uniform import Uniform
from posttrain.recipe.curricula import DifficultyPoolsCurriculum
from posttrain.records import Prompt


class DifficultyPools(Uniform):
    """Draws in proportion to the weight of the pool that the latest pass rate falls into.

    prime-rl's DifficultyPoolSampler: no smoothing, inclusive upper thresholds, unseen prompts weigh
    1. It draws with replacement; here a batch has no prompt twice.
    """

    def __init__(
        self, spec: DifficultyPoolsCurriculum, prompts: Sequence[Prompt], *, seed: int
    ) -> None:
        super().__init__(spec, prompts, seed=seed)
        self._spec = spec

    def _choose(self, capability: int, num_prompts: int, taken_P: Mask) -> list[Choice]:
        free = self._free(capability, taken_P)
        latest, spec = self._history.latest_P[free], self._spec
        weights = np.where(
            latest <= spec.hard,
            spec.hard_weight,
            np.where(latest <= spec.normal, spec.normal_weight, spec.easy_weight),
        )
        weights = np.where(np.isnan(latest), 1.0, weights)
        with np.errstate(divide="ignore"):
            chosen = free[gumbel_top(np.log(weights), num_prompts, self._pool.rng)]
        taken_P[chosen] = True
        return [Choice(index=i, reason="selected") for i in chosen.tolist()]
