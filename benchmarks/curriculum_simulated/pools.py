"""Pools of the simulated bed: their prompts, the length of training, and what disturbs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.curriculum_simulated.learner import Floats, Ints, Rates
from posttrain.records import Prompt

NUM_SKILLS = 4
HELD_OUT_PER_SKILL = 250


USUAL_RATES = Rates()


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolSpec:
    """Contents of one pool, and how uniform trains on it."""

    alive: float
    """Share of prompts of moderate difficulty; the others are far out of reach or solved."""
    alive_spread: float = 1.5
    """Standard deviation of the alive prompts' difficulty, in logits."""
    num_prompts: int
    num_steps: int
    """Optimizer steps of uniform; the limits of other arms follow from its tokens."""
    dead_hard: float = 0.65
    """Share of the dead prompts that are too hard; the others are solved."""
    tag_correlation: float = 0.7
    """Pearson correlation of tags with difficulty."""
    probe_noise: float | None = 0.5
    """Standard deviation of the answer's log-likelihood around log p, in nats; None where
    likelihood is unrelated to p, as with long reasoning answers."""
    shuffled_tags: bool = False
    flips: float = 0.0
    """Probability that the verifier reports the opposite."""
    random_reward: bool = False
    rates: Rates = USUAL_RATES


@dataclass(frozen=True, kw_only=True, slots=True)
class SimPool:
    """Prompts of one pool and seed."""

    prompts: list[Prompt]
    skill_P: Ints
    difficulty_P: Floats
    tags: Mapping[str, float]
    held_out_TH: Floats


_ONE_EPOCH = {
    "curated": PoolSpec(alive=1.0, num_prompts=4096, num_steps=120),
    "wide": PoolSpec(alive=0.45, num_prompts=8192, num_steps=240),
    "dead 85 %": PoolSpec(alive=0.15, num_prompts=16384, num_steps=480),
    "dead 95 %": PoolSpec(alive=0.05, num_prompts=40960, num_steps=1200),
}
_MANY_EPOCHS = {
    "wide": replace(_ONE_EPOCH["wide"], num_prompts=1024),
    "dead 85 %": replace(_ONE_EPOCH["dead 85 %"], num_prompts=2048),
    "dead 95 %": replace(_ONE_EPOCH["dead 95 %"], num_prompts=4096),
}
POOLS: Mapping[str, PoolSpec] = {
    **{f"{name}, 1 epoch": spec for name, spec in _ONE_EPOCH.items()},
    **{f"{name}, many epochs": spec for name, spec in _MANY_EPOCHS.items()},
    "dead 95 %, 1 epoch, tags r = 0.9": replace(_ONE_EPOCH["dead 95 %"], tag_correlation=0.9),
    "wide, long answers": replace(_ONE_EPOCH["wide"], probe_noise=None),
    "wide, scaled advantages": replace(_ONE_EPOCH["wide"], rates=Rates(scale=True, learning=0.2)),
    "homogeneous": PoolSpec(alive=1.0, alive_spread=0.05, num_prompts=4096, num_steps=120),
    "wide, 5 % flips": replace(_ONE_EPOCH["wide"], flips=0.05),
    "wide, 10 % flips": replace(_ONE_EPOCH["wide"], flips=0.1),
    "wide, random reward": replace(_ONE_EPOCH["wide"], random_reward=True, num_steps=120),
}


def draw_pool(spec: PoolSpec, seed: int) -> SimPool:
    """Draw the prompts of one seed, equal for every arm.

    Abilities start at 0. Alive prompts have difficulty N(0.3, alive_spread), dead ones are 5 to 12
    logits away. Held-out prompts have difficulty N(0.3, 1.5) in every pool.
    """
    rng = np.random.default_rng([seed, 1])
    num = spec.num_prompts
    skill_P = np.arange(num) % NUM_SKILLS
    alive_P = np.zeros(num, dtype=np.bool_)
    alive_P[: round(spec.alive * num)] = True
    rng.shuffle(alive_P)
    hard_P = rng.random(num) < spec.dead_hard
    far_P = rng.uniform(5.0, 12.0, num) * np.where(hard_P, 1.0, -1.0)
    near_P = rng.normal(0.3, spec.alive_spread, num)
    difficulty_P = np.where(alive_P, near_P, far_P)
    r = spec.tag_correlation
    noise = difficulty_P.std() * np.sqrt(1.0 / r**2 - 1.0)
    tags_P = difficulty_P + rng.normal(0.0, noise, num)
    if spec.shuffled_tags:
        # Numbers of its own, so that nothing else of the pool changes.
        np.random.default_rng([seed, 4]).shuffle(tags_P)
    prompts = [
        Prompt(
            prompt_id=f"{i:08x}",
            messages=[],
            reference="",
            verifier="exact",
            capability=f"skill {skill}",
        )
        for i, skill in enumerate(skill_P.tolist())
    ]
    return SimPool(
        prompts=prompts,
        skill_P=skill_P,
        difficulty_P=difficulty_P,
        tags={p.prompt_id: t for p, t in zip(prompts, tags_P.tolist(), strict=True)},
        held_out_TH=rng.normal(0.3, 1.5, (NUM_SKILLS, HELD_OUT_PER_SKILL)),
    )
