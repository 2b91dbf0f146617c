"""Which prompts come next, learned from scored groups; pure numpy and scipy, own random numbers.

A curriculum is one file: its spec, which the YAML is checked against, and its class. The table
below lists them; schema, checks and `build_curriculum` derive from it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import reduce
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from posttrain.curriculum.adaptive import Adaptive, AdaptiveSpec
from posttrain.curriculum.difficulty_pools import DifficultyPools, DifficultyPoolsSpec
from posttrain.curriculum.mopps import Mopps, MoppsSpec
from posttrain.curriculum.protocol import Curriculum, CurriculumSpec, Proposal, Reason
from posttrain.curriculum.retiring import Retiring, RetiringSpec
from posttrain.curriculum.uniform import Uniform, UniformSpec
from posttrain.records import Prompt

__all__ = [
    "CURRICULA",
    "Adaptive",
    "AdaptiveSpec",
    "AnyCurriculumSpec",
    "Curriculum",
    "CurriculumSpec",
    "Proposal",
    "Reason",
    "Uniform",
    "UniformSpec",
    "build_curriculum",
]

CURRICULA: Mapping[type[CurriculumSpec], Callable[..., Curriculum]] = {
    UniformSpec: Uniform,
    RetiringSpec: Retiring,
    DifficultyPoolsSpec: DifficultyPools,
    MoppsSpec: Mopps,
    AdaptiveSpec: Adaptive,
}
"""Each curriculum's spec and class; the spec's `kind` is its name in YAML."""

if TYPE_CHECKING:
    AnyCurriculumSpec = CurriculumSpec
else:
    AnyCurriculumSpec = Annotated[reduce(operator.or_, CURRICULA), Field(discriminator="kind")]
    """A spec of the table, by its `kind`."""


def build_curriculum(
    spec: CurriculumSpec,
    prompts: Sequence[Prompt],
    *,
    seed: int,
    tags: Mapping[str, float] | None = None,
) -> Curriculum:
    """Return the curriculum of `spec` over `prompts`.

    `tags` maps a prompt_id to a judged difficulty, in any unit; prompts without one (or with NaN)
    are learned about without. Raise RecipeError if the quotas do not fit the prompts' capabilities,
    ValueError if a prompt comes twice or the table has no such kind.
    """
    made = CURRICULA.get(type(spec))
    if made is None:
        kinds = [one.kind_name() for one in CURRICULA]
        name = spec.kind_name()
        near = get_close_matches(name, kinds, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"no curriculum of kind {name}{meant}: one of {', '.join(kinds)}")
    return made(spec, prompts, seed=seed, tags=tags)
