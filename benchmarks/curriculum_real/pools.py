"""Pools of the real bed: prompts by the starting policy's pass rates, tags, held-out prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from benchmarks.curriculum_real.tasks import CAPABILITIES, LEVELS, draw_prompt
from benchmarks.curriculum_rows import Floats
from posttrain.errors import HealthStop
from posttrain.records import Prompt

GROUP_SIZE = 8
HELD_OUT_PER_LEVEL = 12
ALIVE_FROM, DEAD_UP_TO = 0.5, 0.15
"""Bounds on P(group is mixed). Prompts in between are left out of pools, so that the share of
alive prompts is what the pool's name says."""
Kind = Literal["alive", "hard", "solved"]
Rate = Callable[[Sequence[Prompt]], Floats]
_CHUNK, _MAX_CHUNKS = 512, 100


@dataclass(frozen=True, kw_only=True, slots=True)
class RealPoolSpec:
    """Contents of one pool, and how uniform trains on it."""

    alive: float
    """Share of prompts whose groups are likely to have signal at the start."""
    num_prompts: int
    num_steps: int
    """Optimizer steps of uniform; the limits of other arms follow from its tokens."""
    learning_rate: float
    """Learning rate at which uniform does not first lose what SFT's decaying rate had settled;
    lower where fewer groups have signal, because Adam makes all steps equally large."""
    higher_rate: float
    """Learning rate of the arms at a higher rate: uniform gains little or nothing at it, because
    its few groups with signal are too noisy for longer steps."""
    dead_hard: float = 0.9
    """Share of the dead prompts that the starting policy never solves; the rest is solved."""
    tag_correlation: float = 0.7
    """Pearson correlation of tags with the starting policy's logit of failing."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class RealPool:
    """Prompts of one pool and seed."""

    prompts: list[Prompt]
    rates_P: Floats
    """Pass rates of the starting policy, which no curriculum sees."""
    tags: Mapping[str, float]
    held_out: list[Prompt]
    """Prompts outside the pool, equally many of each capability and level."""

    @property
    def alive(self) -> float:
        """Mean P(group is mixed) at the start."""
        return float(signal_chance(self.rates_P).mean())


def signal_chance(rates: Floats) -> Floats:
    """P(group of GROUP_SIZE is mixed), neither all right nor all wrong."""
    return 1.0 - rates**GROUP_SIZE - (1.0 - rates) ** GROUP_SIZE


def draw_held_out(seed: int) -> list[Prompt]:
    """Draw HELD_OUT_PER_LEVEL different prompts of each capability and level."""
    rng = np.random.default_rng([seed, 5])
    found: dict[str, Prompt] = {}
    for capability in CAPABILITIES:
        for level in LEVELS:
            least = len(found) + HELD_OUT_PER_LEVEL
            while len(found) < least:
                prompt = draw_prompt(capability, level, rng)
                found[prompt.prompt_id] = prompt
    return list(found.values())


def draw_real_pool(spec: RealPoolSpec, rate: Rate, *, seed: int) -> RealPool:
    """Draw the prompts of one seed, equal for every arm; `rate` returns pass rates at the start.

    Raises HealthStop where the policy leaves too few prompts of a kind.
    """
    held_out = draw_held_out(seed)
    rng = np.random.default_rng([seed, 1])
    seen = {prompt.prompt_id for prompt in held_out}
    prompts: list[Prompt] = []
    rates: list[float] = []
    for c, capability in enumerate(CAPABILITIES):
        num = len(range(c, spec.num_prompts, len(CAPABILITIES)))
        num_alive = round(spec.alive * num)
        num_hard = round(spec.dead_hard * (num - num_alive))
        missing: Counter[str] = Counter(
            alive=num_alive, hard=num_hard, solved=num - num_alive - num_hard
        )
        for _ in range(_MAX_CHUNKS):
            if not missing.total():
                break
            levels = rng.choice(LEVELS, size=_CHUNK).tolist()
            drawn = {p.prompt_id: p for p in (draw_prompt(capability, k, rng) for k in levels)}
            new = [p for i, p in drawn.items() if i not in seen]
            for prompt, p in zip(new, rate(new).tolist(), strict=True):
                kind = kind_of(p)
                if kind is not None and missing[kind] > 0:
                    missing[kind] -= 1
                    seen.add(prompt.prompt_id)
                    prompts.append(prompt)
                    rates.append(p)
        if lacking := [kind for kind, num in missing.items() if num]:
            raise HealthStop(
                f"bench curriculum: the starting policy of seed {seed} leaves {missing[lacking[0]]}"
                f" {lacking[0]} prompts of {capability} to be found",
                hint="give the pool fewer prompts, or the starting policy more or fewer SFT steps",
            )
    order = rng.permutation(len(prompts))
    shuffled = [prompts[i] for i in order]
    rates_P = np.array(rates)[order]
    return RealPool(
        prompts=shuffled,
        rates_P=rates_P,
        tags=_tags(spec, shuffled, rates_P, rng),
        held_out=held_out,
    )


def kind_of(rate: float) -> Kind | None:
    """Classify a prompt by its pass rate; None between the bounds.

    >>> kind_of(0.5), kind_of(0.0), kind_of(0.999), kind_of(0.05)
    ('alive', 'hard', 'solved', None)
    """
    chance = float(signal_chance(np.array(rate)))
    if chance >= ALIVE_FROM:
        return "alive"
    if chance > DEAD_UP_TO:
        return None
    return "hard" if rate < 0.5 else "solved"


def _tags(
    spec: RealPoolSpec, prompts: Sequence[Prompt], rates_P: Floats, rng: np.random.Generator
) -> dict[str, float]:
    # Past e^-9 a judge could not tell two prompts apart either.
    p = np.clip(rates_P, np.exp(-9.0), 1.0 - np.exp(-9.0))
    failing_P = np.log1p(-p) - np.log(p)
    noise = failing_P.std() * np.sqrt(1.0 / spec.tag_correlation**2 - 1.0)
    tags_P = failing_P + rng.normal(0.0, noise, len(p))
    if spec.shuffled_tags:
        rng.shuffle(tags_P)
    return {p.prompt_id: tag for p, tag in zip(prompts, tags_P.tolist(), strict=True)}
