"""A learner that costs microseconds: item response theory moved by GRPO's own gradient.

A prompt i asks for one skill s(i) and passes with p_i = sigmoid(z_i), z_i = theta_s(i) + m_i - b_i:
ability, what was memorised of the prompt, difficulty (the Rasch model). One rollout's outcome o has
score function d log P(o) / d z = o - p, so a group of n rollouts with rewards r moves its prompt's
logit by the policy gradient with the group's mean as baseline

    g = sum_j (r_j - mean r) (o_j - p) = n cov(r, o),

which is n q (1 - q) where the reward is the outcome and q the group's pass rate: groups without
signal move nothing, and one half moves most. Wrong rewards (flips) weaken the covariance; those of
a dead prompt have none. With `scale` the sum is divided by the standard deviation of r,
as GRPO does: n sqrt(q (1 - q)). A step of B groups of k moves

    theta_t += lr / (B k) * sum_i transfer[t, s(i)] g_i / (1 + m_i)
               - forgetting (theta_t - theta_t(0)) h_t,
    m_i     += memory / k * g_i,
    theta_t += noise * lr / (B k) * sqrt(sum_i n_i var(r_i)) * N(0, 1),

h_t what the other skills moved in that step: skills fade while others are learned, never with time
alone, so that a slow arm is not punished for being slow. What was memorised of a prompt generalises
less: with memory 0.5 a prompt at one half teaches two thirds of its first lesson after four visits
and half after eight (repetition is nearly free up to about four epochs and of little worth after
sixteen, Muennighoff et al. 2023, arXiv 2305.16264, for pre-training), so that an arm that lives on
few prompts pays for it. The normaliser is the batch asked for,
however many groups had signal: plain gradient descent. Adam, which would blow a thin batch's
gradient up and its noise with it, narrows the gap between arms; that is one reason why real ratios
are expected to be lower.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Parameters of a learner."""

    learning: float = 0.5
    transfer: float = 0.1
    """Share of a skill's movement that is passed on to every other skill."""
    forgetting: float = 0.1
    memory: float = 0.5
    noise: float = 0.3
    scale: bool = False
    """True to divide advantages by the group's standard deviation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Rollouts of one prompt: true outcomes and the verifier's rewards, (n,) each."""

    prompt: int
    outcomes: Bools
    rewards: Bools

    @property
    def spread(self) -> float:
        """n q (1 - q) of the rewards, 0 without signal."""
        q = float(self.rewards.mean())
        return len(self.rewards) * q * (1.0 - q)


class Learner:
    """Abilities by skill, and what was memorised of each prompt."""

    def __init__(
        self,
        *,
        ability: Floats,
        skill_P: Ints,
        difficulty_P: Floats,
        rates: Rates,
        rng: np.random.Generator,
    ) -> None:
        self._start = ability.copy()
        self.ability = ability.copy()
        self._skill_P, self._difficulty_P = skill_P, difficulty_P
        self._memorised_P = np.zeros(len(skill_P))
        self._rates, self._rng = rates, rng
        num = len(ability)
        self._transfer = np.full((num, num), rates.transfer) + np.eye(num) * (1 - rates.transfer)

    def pass_rates(self, prompts: Ints | slice = slice(None)) -> Floats:
        """Return the pass rates of some prompts, or of all."""
        z = self.ability[self._skill_P[prompts]] + self._memorised_P[prompts]
        return sigmoid(z - self._difficulty_P[prompts])

    def held_out(self, difficulty_TH: Floats) -> float:
        """Return exact pass@1 of held-out prompts (skills x prompts), averaged over skills."""
        return float(sigmoid(self.ability[:, None] - difficulty_TH).mean())

    def learn(self, groups: list[Group], *, batch: int, group_size: int) -> None:
        """Take one optimizer step; `batch` is the number of groups that was asked for."""
        rates = self._rates
        moved_T = np.zeros(len(self.ability))
        noise = np.zeros(len(self.ability))
        for group in groups:
            spread = group.spread
            if not spread:
                continue
            r, o = group.rewards.astype(float), group.outcomes.astype(float)
            gradient = float(np.dot(r - r.mean(), o))
            if rates.scale:
                deviation = np.sqrt(spread / len(r))
                gradient, spread = gradient / deviation, float(len(r))
            skill = int(self._skill_P[group.prompt])
            known = max(float(self._memorised_P[group.prompt]), 0.0)
            moved_T[skill] += gradient / (1.0 + known)
            noise[skill] += spread
            self._memorised_P[group.prompt] += rates.memory * gradient / group_size
        size = batch * group_size
        own_T = rates.learning / size * moved_T
        others_T = np.abs(own_T).sum() - np.abs(own_T)
        chance = self._rng.standard_normal(len(self.ability))
        self.ability += self._transfer @ own_T
        self.ability -= rates.forgetting * (self.ability - self._start) * others_T
        self.ability += rates.noise * rates.learning / size * np.sqrt(noise) * chance


def sigmoid(z: Floats) -> Floats:
    """1 / (1 + exp(-z))."""
    return 1.0 / (1.0 + np.exp(-z))
