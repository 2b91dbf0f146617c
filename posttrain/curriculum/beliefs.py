"""The Beta belief about each prompt's pass rate, and how it follows what is observed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from posttrain.curriculum.arrays import Floats, Ints, np
from posttrain.curriculum.beta import Calibration, mixed_probability, probability_above
from posttrain.curriculum.counts import StepCounts
from posttrain.curriculum.evidence import DiscountChoice, Evidence, Untried
from posttrain.curriculum.pool import Pool
from posttrain.curriculum.priors import LikelihoodMap, StratumPrior
from posttrain.records import Prompt

LIKELIHOOD_HALF_LIFE = 30.0
"""Steps after which a likelihood counts for half."""
# A prompt is solved once P(p > rate) is above this chance.
_SOLVED_RATE, _SOLVED_CHANCE = 0.9, 0.8
# Where the band's centre is when the capability is mastered.
_MASTERED_CENTRE = 0.4
# Weight left at each step to the usual signal per rollout.
_SIGNAL_KEPT = 0.9
# Steps for which a likelihood counts as the policy's own.
_FRESH_STEPS = 4


class Beliefs:
    """A Beta distribution per prompt: its stratum's and likelihood's prior, its own rollouts."""

    def __init__(
        self,
        pool: Pool,
        prompts: Sequence[Prompt],
        *,
        tags: Mapping[str, float],
        prior_pass_rate: float,
        prior_strength: float,
        shrinkage: float,
        discount: float | Literal["auto"],
        centre: float,
        backoff: int,
    ) -> None:
        self._pool = pool
        self._discount, self._centre, self._backoff = discount, centre, backoff
        self.step = 0
        self.num_generations = 8
        """Rollouts of a whole group."""
        self._prior = StratumPrior(
            prompts, tags, mean=prior_pass_rate, strength=prior_strength, shrinkage=shrinkage
        )
        self.untried = Untried(self._prior.strata_of(prompts), rng=pool.rng)
        self.evidence = Evidence(len(prompts))
        self._discounts = DiscountChoice()
        self.likelihoods = LikelihoodMap(len(pool.capabilities))
        self.calibration = Calibration()
        self._signal, self._num_rollouts = 0.0, 0.0

    # The beliefs

    def of(self, index_N: Ints) -> tuple[Floats, Floats]:
        """Return alpha and beta of each prompt."""
        alpha, beta = self._priors(index_N)
        alpha = alpha + self.evidence.passed_P[index_N]
        beta = beta + self.evidence.failed_P[index_N]
        return alpha, beta

    def of_strata(self) -> tuple[Floats, Floats]:
        """Return (S,) alpha and beta of a prompt known by its stratum alone."""
        mean_S, strength_S = self._prior.parameters()
        return mean_S * strength_S, (1.0 - mean_S) * strength_S

    def strata_of(self, capability: int) -> Ints:
        """Return the numbers of a capability's strata."""
        return np.flatnonzero(self.capability_S() == capability)

    def capability_S(self) -> Ints:
        """Return (S,) the capability of each stratum; -1 if it has no quota."""
        numbers = {name: c for c, name in enumerate(self._pool.capabilities)}
        return np.array([numbers.get(s[0], -1) for s in self._prior.strata], dtype=np.int64)

    def mixed_share_C(self) -> Floats:
        """Return (C,) the mean of P(group is mixed) over a capability's strata, by their sizes."""
        return self._by_capability(self._mixed_probability_S())

    def centre_C(self) -> Floats:
        """Return (C,) the band's centre: lower (harder) as the capability's pass rate rises."""
        mean_S, _ = self._prior.parameters()
        mastered_C = np.clip((self._by_capability(mean_S) - 0.25) / 0.5, 0.0, 1.0)
        return self._centre - (self._centre - min(_MASTERED_CENTRE, self._centre)) * mastered_C

    @property
    def signal_per_rollout(self) -> float:
        """Return the usual sum of p(1-p) over a group's rollouts, per rollout; NaN before any."""
        return self._signal / self._num_rollouts if self._num_rollouts else math.nan

    def metrics(self) -> dict[str, float]:
        """Return what is believed now, in all and by capability."""
        evidence, pool = self.evidence, self._pool
        known_C = pool.capability_P[evidence.known]
        found = {
            "curriculum/discount": self._discount_now(),
            "curriculum/signal_per_rollout": self.signal_per_rollout,
            **{f"curriculum/{k}": v for k, v in self.calibration.metrics().items()},
        }
        mixed_S = self._mixed_probability_S()
        mean_S, _ = self._prior.parameters()
        weight_C, centre_C = self.likelihoods.weight_C, self.centre_C()
        for c, name in enumerate(pool.capabilities):
            strata = self.strata_of(c)
            sizes = self.untried.size_S[strata]
            mine = evidence.known[known_C == c]
            found |= {
                f"curriculum/{name}/known": len(mine) / float(sizes.sum()),
                f"curriculum/{name}/solved": float(evidence.solved_P[mine].sum()) / sizes.sum(),
                f"curriculum/{name}/unsolved": float((evidence.failures_P[mine] > 0).sum())
                / sizes.sum(),
                f"curriculum/{name}/pass_rate": float(np.average(mean_S[strata], weights=sizes)),
                f"curriculum/{name}/alive": float(np.average(mixed_S[strata], weights=sizes)),
                f"curriculum/{name}/centre": float(centre_C[c]),
                f"curriculum/{name}/probe_weight": float(weight_C[c]),
            }
        return found

    def _priors(self, index_N: Ints) -> tuple[Floats, Floats]:
        """Return alpha and beta without the prompts' own rollouts: by stratum and likelihood."""
        alpha_S, beta_S = self.of_strata()
        s = self.untried.stratum_P[index_N]
        alpha, beta = alpha_S[s], beta_S[s]
        evidence = self.evidence
        logprob_N = evidence.logprob_P[index_N].astype(np.float64)
        weight_C = self.likelihoods.weight_C
        if np.isnan(logprob_N).all() or not weight_C.any():
            return alpha, beta
        capability_N = self._pool.capability_P[index_N]
        age_N = np.maximum(self.step - evidence.scored_P[index_N], 0)
        for c in np.flatnonzero(weight_C).tolist():
            scored = np.flatnonzero((capability_N == c) & ~np.isnan(logprob_N))
            mean, strength = self.likelihoods.beliefs(c, logprob_N[scored])
            w = weight_C[c] * 0.5 ** (age_N[scored] / LIKELIHOOD_HALF_LIFE)
            alpha[scored] = (1 - w) * alpha[scored] + w * mean * strength
            beta[scored] = (1 - w) * beta[scored] + w * (1 - mean) * strength
        return alpha, beta

    def _mixed_probability_S(self) -> Floats:
        return mixed_probability(*self.of_strata(), self.num_generations)

    def _by_capability(self, values_S: Floats) -> Floats:
        """Return (C,) means over strata, by their sizes."""
        capability_S = self.capability_S()
        used = capability_S >= 0
        num = len(self._pool.capabilities)
        sizes_S = self.untried.size_S[used]
        total_C = np.bincount(capability_S[used], sizes_S * values_S[used], num)
        return total_C / np.maximum(np.bincount(capability_S[used], sizes_S, num), 1.0)

    def _discount_now(self) -> float:
        return self._discounts.best if isinstance(self._discount, str) else self._discount

    # Learning

    def learn(self, counts: StepCounts) -> None:
        """Learn from one step's groups."""
        if counts.step > self.step:
            faded = _SIGNAL_KEPT ** (counts.step - self.step)
            self._signal, self._num_rollouts = self._signal * faded, self._num_rollouts * faded
            self.step = counts.step
        self.evidence.defer(counts.undecided_U, step=counts.step, backoff=self._backoff)
        self._mark_known(counts.undecided_U)
        if len(counts.index_N):
            self._learn_counts(counts)

    def _learn_counts(self, counts: StepCounts) -> None:
        evidence, i = self.evidence, counts.index_N
        c, n = counts.num_passed_N, counts.num_decided_N
        self._signal += float(np.sum(c * (n - c) / n))
        self._num_rollouts += float(n.sum())

        prior_alpha, prior_beta = self._priors(i)
        alpha, beta = self.of(i)
        self.calibration.observe(alpha, beta, c, n)
        self._learn_likelihoods(counts)
        # Once likelihoods have weight, prompts chosen by them are no sample of their stratum.
        chosen_by_it = self.likelihoods.weight_C[np.maximum(self._pool.capability_P[i], 0)] > 0
        first_N = evidence.passed_P[i] + evidence.failed_P[i] == 0
        first_N &= ~(chosen_by_it & ~np.isnan(evidence.logprob_P[i]))
        self._prior.observe(
            counts, self.untried.stratum_P[i].astype(np.int64), first_N.astype(np.float64)
        )
        if self._discount == "auto":
            self._discounts.observe(counts, prior_alpha, prior_beta)
        evidence.count(counts, discount=self._discount_now(), backoff=self._backoff)
        self._mark_known(i)
        alpha, beta = self.of(i)
        evidence.solved_P[i] = probability_above(_SOLVED_RATE, alpha, beta) > _SOLVED_CHANCE

    def observe_likelihood(self, logprobs: Mapping[str, float | None], *, step: int) -> None:
        """Learn log-likelihoods, see Curriculum.observe_likelihood."""
        scored = {
            self._pool.index(prompt_id): _checked_logprob(prompt_id, value)
            for prompt_id, value in sorted(logprobs.items())
            if value is not None
        }
        unscorable = np.array(
            [self._pool.index(prompt_id) for prompt_id in logprobs if logprobs[prompt_id] is None],
            dtype=np.int64,
        )
        self.evidence.unscorable_P[unscorable] = True
        indices = np.array(list(scored), dtype=np.int64)
        self.evidence.logprob_P[indices] = list(scored.values())
        self.evidence.scored_P[indices] = step
        scored_C, unscorable_C = (
            np.bincount(self._pool.capability_P[i], minlength=len(self._pool.capabilities))
            for i in (indices, unscorable)
        )
        self.likelihoods.count_scored(scored_C, unscorable_C)
        self._mark_known(indices)

    def grow(self, prompts: Sequence[Prompt]) -> None:
        """Make room for prompts that were added to the pool."""
        self.untried.grow(self._prior.strata_of(prompts), rng=self._pool.rng)
        self.evidence.grow(len(prompts))

    def _learn_likelihoods(self, counts: StepCounts) -> None:
        """Give the map the visits to prompts whose likelihood is still the policy's own."""
        evidence, i = self.evidence, counts.index_N
        fresh = ~np.isnan(evidence.logprob_P[i])
        fresh &= counts.step - evidence.scored_P[i] <= _FRESH_STEPS
        if not fresh.any():
            return
        alpha_S, beta_S = self.of_strata()
        s = self.untried.stratum_P[i]
        for c in range(len(self._pool.capabilities)):
            mine = np.flatnonzero(fresh & (self._pool.capability_P[i] == c))
            self.likelihoods.observe(
                c,
                evidence.logprob_P[i[mine]].astype(np.float64),
                counts.num_passed_N[mine],
                counts.num_decided_N[mine],
                prior=(alpha_S[s[mine]], beta_S[s[mine]]),
                evidence=(
                    evidence.passed_P[i[mine]].astype(np.float64),
                    evidence.failed_P[i[mine]].astype(np.float64),
                ),
            )

    def _mark_known(self, indices: Ints) -> None:
        new = indices[self.untried.is_untried_P[indices]]
        self.evidence.add_known(new)
        self.untried.remove(new)

    def state_dict(self) -> dict[str, Any]:
        """Return all that was learned."""
        return {
            "prior": self._prior.state_dict(),
            "untried": self.untried.state_dict(),
            "evidence": self.evidence.state_dict(),
            "discounts": self._discounts.state_dict(),
            "likelihoods": self.likelihoods.state_dict(),
            "calibration": self.calibration.state_dict(),
            "numbers": [self.step, self.num_generations, self._signal, self._num_rollouts],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._prior.load_state_dict(state["prior"])
        self.untried.load_state_dict(state["untried"])
        self.evidence.load_state_dict(state["evidence"])
        self._discounts.load_state_dict(state["discounts"])
        self.likelihoods.load_state_dict(state["likelihoods"])
        self.calibration.load_state_dict(state["calibration"])
        self.step, self.num_generations, self._signal, self._num_rollouts = state["numbers"]


def _checked_logprob(prompt_id: str, value: float) -> float:
    """Return `value`, at least -10,000; ValueError if it is no log-probability."""
    if math.isnan(value) or value > 1e-6:
        raise ValueError(
            f"likelihood of prompt {prompt_id}: {value} is no log-probability; did the engine "
            "score the reference answer?"
        )
    return max(value, -1e4)
