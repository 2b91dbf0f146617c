"""The curriculum that is told every true pass rate: the ceiling of what choosing can save."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from posttrain.bench.learner import Floats
from posttrain.curriculum import Uniform
from posttrain.curriculum.pool import Choice, Mask
from posttrain.recipe.curricula import UniformCurriculum
from posttrain.records import Prompt


class Oracle(Uniform):
    """The prompts with the greatest p (1 - p), as they are now. For simulations only."""

    def __init__(
        self, prompts: list[Prompt], *, pass_rates: Callable[[], Floats], seed: int
    ) -> None:
        super().__init__(UniformCurriculum(kind="uniform"), prompts, seed=seed)
        self._pass_rates = pass_rates

    def _choose(self, capability: int, num_prompts: int, taken_P: Mask) -> list[Choice]:
        free = self._free(capability, taken_P)
        p = self._pass_rates()[free]
        num = min(num_prompts, len(free))
        chosen = free[np.argsort(-p * (1 - p), kind="stable")[:num]]
        taken_P[chosen] = True
        return [Choice(index=i, reason="selected") for i in chosen.tolist()]
