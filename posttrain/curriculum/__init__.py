"""Which prompts come next, learned from scored groups; pure numpy, own random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from posttrain.curriculum.adaptive import Adaptive
from posttrain.curriculum.difficulty_pools import DifficultyPools
from posttrain.curriculum.mopps import Mopps
from posttrain.curriculum.protocol import Curriculum, Proposal, Reason
from posttrain.curriculum.retiring import Retiring
from posttrain.curriculum.uniform import Uniform
from posttrain.recipe.curricula import (
    AdaptiveCurriculum,
    CurriculumSpec,
    DifficultyPoolsCurriculum,
    RetiringCurriculum,
    UniformCurriculum,
)
from posttrain.records import Prompt

__all__ = ["Adaptive", "Curriculum", "Proposal", "Reason", "Uniform", "build_curriculum"]


def build_curriculum(
    spec: CurriculumSpec,
    prompts: Sequence[Prompt],
    *,
    seed: int,
    tags: Mapping[str, float] | None = None,
) -> Curriculum:
    """The curriculum that `spec` asks for over `prompts`.

    `tags` maps a prompt_id to how hard somebody says it is, in any unit; prompts without one (or
    with NaN) are learned about without. Raises RecipeError where the quotas do not fit the prompts'
    capabilities, ValueError where a prompt comes twice.
    """
    if isinstance(spec, AdaptiveCurriculum):
        return Adaptive(spec, prompts, seed=seed, tags=tags)
    if isinstance(spec, UniformCurriculum):
        return Uniform(spec, prompts, seed=seed)
    if isinstance(spec, RetiringCurriculum):
        return Retiring(spec, prompts, seed=seed)
    if isinstance(spec, DifficultyPoolsCurriculum):
        return DifficultyPools(spec, prompts, seed=seed)
    return Mopps(spec, prompts, seed=seed)
