"""The real bed's pools by name: what a pool is made of, and how long it is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class RealPoolSpec:
    """One pool and how long uniform trains on it."""

    alive: float
    """Share of prompts whose groups are likely to have signal at the start."""
    num_prompts: int
    num_steps: int
    """Of the uniform arm; what others may spend follows from its tokens."""
    learning_rate: float
    """One at which uniform does not first lose what the decay of SFT's learning rate had settled.
    The fewer groups have signal, the lower: Adam makes all steps equally large."""
    higher_rate: float
    """Of the arms that are named so: one that gains uniform little or nothing, as its few groups
    with signal are too noisy for longer steps."""
    dead_hard: float = 0.9
    """Share of the dead ones that the starting policy never solves; the rest it always does."""
    tag_correlation: float = 0.7
    """Of tag and the starting policy's logit of failing (Pearson), over the pool."""
    shuffled_tags: bool = False


_FEW_EPOCHS = {
    "curated": RealPoolSpec(
        alive=1.0, num_prompts=2048, num_steps=60, learning_rate=5e-5, higher_rate=1e-4
    ),
    "wide": RealPoolSpec(
        alive=0.45, num_prompts=4096, num_steps=100, learning_rate=5e-5, higher_rate=1e-4
    ),
    # One or two groups of a batch have signal: uniform needs many steps to gain anything.
    "dead 95 %": RealPoolSpec(
        alive=0.05,
        num_prompts=8192,
        num_steps=400,
        learning_rate=2e-5,
        higher_rate=5e-5,
        dead_hard=0.95,
    ),
}
REAL_POOLS: Mapping[str, RealPoolSpec] = {
    **_FEW_EPOCHS,
    "wide, many epochs": replace(_FEW_EPOCHS["wide"], num_prompts=512),
    "dead 95 %, many epochs": replace(_FEW_EPOCHS["dead 95 %"], num_prompts=2048),
}
