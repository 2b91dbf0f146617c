"""ScaleRL: prompts that the policy nearly always passes are never shown again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posttrain.curriculum.pool import Choice, Mask
from posttrain.curriculum.uniform import Uniform
from posttrain.recipe.curricula import RetiringCurriculum
from posttrain.records import Prompt


class Retiring(Uniform):
    """Uniform over prompts whose pass rate so far stays below a cap.

    The pass rate is that of all rollouts of the prompt so far (ScaleRL, arXiv 2510.13786:
    "No-Positive-Resampling" by the history of pass rates). A retired prompt comes only where a
    capability has no other left.
    """

    def __init__(self, spec: RetiringCurriculum, prompts: Sequence[Prompt], *, seed: int) -> None:
        super().__init__(spec, prompts, seed=seed)
        self._cap = spec.pass_rate_cap

    def _choose(self, capability: int, num_prompts: int, taken_P: Mask) -> list[Choice]:
        free = self._free(capability, taken_P)
        decided = self._history.num_decided_P[free]
        rates = self._history.num_passed_P[free] / np.maximum(decided, 1)
        retired = (decided > 0) & (rates >= self._cap)
        chosen = self._longest_unseen(free[~retired], num_prompts)
        filled = self._longest_unseen(free[retired], num_prompts - len(chosen))
        taken_P[chosen] = taken_P[filled] = True
        return [Choice(index=i, reason="selected") for i in chosen.tolist()] + [
            Choice(index=i, reason="filled") for i in filled.tolist()
        ]
