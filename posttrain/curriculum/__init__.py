"""Which prompts come next, learned from scored groups; pure numpy, own random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from posttrain.curriculum.band import Band
from posttrain.curriculum.protocol import Curriculum, Proposal, Reason
from posttrain.curriculum.uniform import Uniform
from posttrain.recipe.schema import BandCurriculum, UniformCurriculum
from posttrain.records import Prompt

__all__ = ["Band", "Curriculum", "Proposal", "Reason", "Uniform", "build_curriculum"]


def build_curriculum(
    spec: UniformCurriculum | BandCurriculum,
    prompts: Sequence[Prompt],
    *,
    seed: int,
    prior: Mapping[str, float] | None = None,
) -> Curriculum:
    """The curriculum that `spec` asks for over `prompts`.

    `prior` maps a prompt_id to its expected pass rate; prompts it does not name start from
    `spec`'s. Raises RecipeError where the quotas do not fit the prompts' capabilities.
    """
    if isinstance(spec, UniformCurriculum):
        return Uniform(spec, prompts, seed=seed)
    return Band(spec, prompts, seed=seed, prior=prior)
