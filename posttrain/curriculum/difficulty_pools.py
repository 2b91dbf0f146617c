"""Difficulty pools: a prompt's weight follows from its latest group alone, as in prime-rl."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from posttrain.curriculum.arrays import Mask, np
from posttrain.curriculum.pool import Choice, gumbel_top
from posttrain.curriculum.protocol import CurriculumSpec
from posttrain.curriculum.uniform import Uniform
from posttrain.spec import Share, wrong


class DifficultyPoolsSpec(CurriculumSpec):
    """Weights by the latest group's pass rate; as in prime-rl."""

    kind: Literal["difficulty_pools"]
    hard: Share = 0.25
    """Highest pass rate of a hard prompt."""
    normal: Share = 0.75
    """Highest pass rate of a normal prompt; those above are easy."""
    hard_weight: float = Field(default=0.2, gt=0)
    """Sampling weight of a hard prompt; unseen ones weigh 1."""
    normal_weight: float = Field(default=1.0, gt=0)
    """Sampling weight of a normal prompt."""
    easy_weight: float = Field(default=0.2, gt=0)
    """Sampling weight of an easy prompt."""

    @model_validator(mode="after")
    def _rising(self) -> DifficultyPoolsSpec:
        if self.hard >= self.normal:
            raise wrong(f"must be below normal ({self.normal:g})", "hard")
        return self


class DifficultyPools(Uniform[DifficultyPoolsSpec]):
    """Draws in proportion to the weight of the pool that the latest pass rate falls into.

    prime-rl's DifficultyPoolSampler: no smoothing, inclusive upper thresholds, unseen prompts weigh
    1. It draws with replacement; here a batch has no prompt twice.
    """

    def choose(self, capability: int, num_prompts: int, taken_P: Mask) -> list[Choice]:
        """Sample by weight without replacement."""
        free = self.pool.free(capability, taken_P)
        latest, spec = self.history.latest_P[free], self.spec
        weights = np.where(
            latest <= spec.hard,
            spec.hard_weight,
            np.where(latest <= spec.normal, spec.normal_weight, spec.easy_weight),
        )
        weights = np.where(np.isnan(latest), 1.0, weights)
        chosen = free[gumbel_top(np.log(weights), num_prompts, self.pool.rng)]
        taken_P[chosen] = True
        return [Choice(index=i, reason="selected") for i in chosen.tolist()]
