"""Retiring: prompts that the policy nearly always passes are not shown again, as in ScaleRL."""

from __future__ import annotations

from typing import Literal

from posttrain.curriculum.arrays import Mask, np
from posttrain.curriculum.pool import Choice
from posttrain.curriculum.protocol import CurriculumSpec
from posttrain.curriculum.uniform import Uniform
from posttrain.spec import Share


class RetiringSpec(CurriculumSpec):
    """Uniform, without prompts that nearly always pass; as in ScaleRL."""

    kind: Literal["retiring"]
    pass_rate_cap: Share = 0.9
    """A prompt whose pass rate over all its rollouts reaches it is not shown again."""


class Retiring(Uniform[RetiringSpec]):
    """Uniform over prompts whose pass rate so far stays below a cap.

    The pass rate is that of all rollouts of the prompt so far (ScaleRL, arXiv 2510.13786:
    "No-Positive-Resampling" by the history of pass rates). A retired prompt comes only if its
    capability has no other left.
    """

    def choose(self, capability: int, num_prompts: int, taken_P: Mask) -> list[Choice]:
        """Choose among the prompts below the cap, then fill up with retired ones."""
        free = self.pool.free(capability, taken_P)
        decided = self.history.num_decided_P[free]
        rates = self.history.num_passed_P[free] / np.maximum(decided, 1)
        retired = (decided > 0) & (rates >= self.spec.pass_rate_cap)
        chosen = self.longest_unseen(free[~retired], num_prompts)
        filled = self.longest_unseen(free[retired], num_prompts - len(chosen))
        taken_P[chosen] = taken_P[filled] = True
        return [Choice(index=i, reason="selected") for i in chosen.tolist()] + [
            Choice(index=i, reason="filled") for i in filled.tolist()
        ]
