"""What is believed of each prompt's pass rate, and how that follows what is observed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.curriculum.calibration import Calibration
from posttrain.curriculum.discount import DiscountChoice
from posttrain.curriculum.evidence import Evidence
from posttrain.curriculum.inbox import Visits
from posttrain.curriculum.pool import Indices, Pool
from posttrain.curriculum.posterior import Floats, Ints, chance_above, group_signal
from posttrain.curriculum.prior import StratumPrior, tag_bins, tag_edges
from posttrain.curriculum.probe import LikelihoodMap, checked_logprob
from posttrain.curriculum.untried import Untried
from posttrain.recipe.curricula import AdaptiveCurriculum
from posttrain.records import Prompt

_SOLVED_RATE, _SOLVED_CHANCE = 0.9, 0.8
# Weight left at each step to the usual signal per rollout.
_RATE_KEPT = 0.9
# Steps for which a likelihood counts as the policy's own.
_FRESH_STEPS = 4


class Beliefs:
    """A Beta distribution per prompt: its stratum's, its likelihood's and its own rollouts'."""

    def __init__(
        self,
        spec: AdaptiveCurriculum,
        pool: Pool,
        prompts: Sequence[Prompt],
        *,
        tags: Mapping[str, float] | None,
    ) -> None:
        self._spec = spec
        self._pool = pool
        self._tags: Mapping[str, float] = tags or {}
        if np.isinf(np.fromiter(self._tags.values(), np.float64, len(self._tags))).any():
            raise ValueError("a difficulty tag is infinite; give a number, or leave it out")
        self.step = 0
        self.num_generations = 8
        """Rollouts of a group."""
        tags_P = self._tags_of(prompts)
        self._edges = tag_edges(tags_P, spec.tag_bins)
        self._prior = StratumPrior(
            mean=spec.prior_pass_rate,
            strength=spec.prior_strength,
            shrinkage=spec.shrinkage,
            memory=spec.stratum_memory,
        )
        strata_P = self._prior.strata_of(prompts, tag_bins(tags_P, self._edges))
        self.untried = Untried(strata_P, rng=pool.rng)
        self.evidence = Evidence(len(prompts))
        self._discounts = DiscountChoice(0.5 if spec.discount == "auto" else spec.discount)
        self.likelihoods = LikelihoodMap(len(pool.capabilities), memory=512, evidence_kept=0.97)
        self._calibration = Calibration()
        self._signal, self._num_rollouts = 0.0, 0.0

    # What is believed

    def of(self, index_N: Ints) -> tuple[Floats, Floats]:
        """alpha, beta of each prompt."""
        alpha, beta = self._priors(index_N)
        alpha = alpha + self.evidence.passed_P[index_N]
        beta = beta + self.evidence.failed_P[index_N]
        return alpha, beta

    def of_strata(self) -> tuple[Floats, Floats]:
        """(S,) alpha, beta of a prompt of which only the stratum is known."""
        mean_S, strength_S = self._prior.parameters()
        return mean_S * strength_S, (1.0 - mean_S) * strength_S

    def strata_of(self, capability: int) -> Ints:
        """The numbers of its strata."""
        return np.flatnonzero(self.capability_S() == capability)

    def capability_S(self) -> Ints:
        """(S,) the capability of each stratum; -1 where it has no quota."""
        numbers = {name: c for c, name in enumerate(self._pool.capabilities)}
        return np.array([numbers.get(s[0], -1) for s in self._prior.strata], dtype=np.int64)

    def alive_C(self) -> Floats:
        """(C,) expected share of a capability's prompts that a group of which would have signal."""
        return self._by_capability(self._stratum_signal())

    def centre_C(self) -> Floats:
        """(C,) the band's centre: towards harder as the capability's pass rate rises."""
        spec = self._spec
        mean_S, _ = self._prior.parameters()
        mastered_C = np.clip((self._by_capability(mean_S) - 0.25) / 0.5, 0.0, 1.0)
        return spec.centre - (spec.centre - spec.hard_centre) * mastered_C

    @property
    def signal_per_rollout(self) -> float:
        """The usual sum of p(1-p) over a group's rollouts, per rollout; NaN before any."""
        return self._signal / self._num_rollouts if self._num_rollouts else math.nan

    def reliability(self) -> list[tuple[float, float, int]]:
        """See Calibration.reliability."""
        return self._calibration.reliability()

    def metrics(self) -> dict[str, float]:
        """What is believed now, in all and by capability."""
        evidence, pool = self.evidence, self._pool
        known_C = pool.capability_P[evidence.known]
        told = {
            "curriculum/discount": self._discount(),
            "curriculum/signal_per_rollout": self.signal_per_rollout,
            **{f"curriculum/{k}": v for k, v in self._calibration.metrics().items()},
        }
        signal_S = self._stratum_signal()
        mean_S, _ = self._prior.parameters()
        weight_C = self.likelihoods.weight_C
        for c, name in enumerate(pool.capabilities):
            strata = self.strata_of(c)
            sizes = self.untried.size_S[strata]
            mine = evidence.known[known_C == c]
            told |= {
                f"curriculum/{name}/known": len(mine) / float(sizes.sum()),
                f"curriculum/{name}/solved": float(evidence.solved_P[mine].sum()) / sizes.sum(),
                f"curriculum/{name}/unsolved": float((evidence.failures_P[mine] > 0).sum())
                / sizes.sum(),
                f"curriculum/{name}/pass_rate": float(np.average(mean_S[strata], weights=sizes)),
                f"curriculum/{name}/alive": float(np.average(signal_S[strata], weights=sizes)),
                f"curriculum/{name}/centre": float(self.centre_C()[c]),
                f"curriculum/{name}/probe_weight": float(weight_C[c]),
            }
        return told

    def _priors(self, index_N: Ints) -> tuple[Floats, Floats]:
        """alpha, beta without the prompt's own rollouts: its stratum, and its likelihood."""
        alpha_S, beta_S = self.of_strata()
        s = self.untried.stratum_P[index_N]
        alpha, beta = alpha_S[s], beta_S[s]
        evidence = self.evidence
        logprob_N = evidence.logprob_P[index_N].astype(np.float64)
        weight_C = self.likelihoods.weight_C
        if np.isnan(logprob_N).all() or not weight_C.any():
            return alpha, beta
        capability_N = self._pool.capability_P[index_N]
        age_N = np.maximum(self.step - evidence.probed_P[index_N], 0)
        for c in np.flatnonzero(weight_C).tolist():
            probed = np.flatnonzero((capability_N == c) & ~np.isnan(logprob_N))
            mean, strength = self.likelihoods.beliefs(c, logprob_N[probed])
            w = weight_C[c] * 0.5 ** (age_N[probed] / self._spec.probe_memory)
            alpha[probed] = (1 - w) * alpha[probed] + w * mean * strength
            beta[probed] = (1 - w) * beta[probed] + w * (1 - mean) * strength
        return alpha, beta

    def _stratum_signal(self) -> Floats:
        return group_signal(*self.of_strata(), self.num_generations)

    def _by_capability(self, values_S: Floats) -> Floats:
        """(C,) means over strata, by their sizes."""
        capability_S = self.capability_S()
        used = capability_S >= 0
        num = len(self._pool.capabilities)
        sizes_S = self.untried.size_S[used]
        total_C = np.bincount(capability_S[used], sizes_S * values_S[used], num)
        return total_C / np.maximum(np.bincount(capability_S[used], sizes_S, num), 1.0)

    def _discount(self) -> float:
        chosen = self._spec.discount
        return self._discounts.best if chosen == "auto" else chosen

    # How it follows

    def learn(self, visits: Visits) -> None:
        """Take one step's groups in."""
        if visits.step > self.step:
            faded = _RATE_KEPT ** (visits.step - self.step)
            self._signal, self._num_rollouts = self._signal * faded, self._num_rollouts * faded
            self.step = visits.step
        self.evidence.defer(visits.undecided_U, step=visits.step, backoff=self._spec.backoff)
        self._meet(visits.undecided_U)
        if len(visits.index_N):
            self._learn_counts(visits)

    def _learn_counts(self, visits: Visits) -> None:
        evidence, i = self.evidence, visits.index_N
        c, n = visits.num_passed_N, visits.num_decided_N
        self._signal += float(np.sum(c * (n - c) / n))
        self._num_rollouts += float(n.sum())

        prior_alpha, prior_beta = self._priors(i)
        alpha, beta = self.of(i)
        self._calibration.observe(alpha, beta, c, n)
        self._learn_likelihoods(visits)
        # Once likelihoods decide, those who have one are no sample of their stratum.
        chosen_by_it = self.likelihoods.weight_C[np.maximum(self._pool.capability_P[i], 0)] > 0
        first_N = evidence.passed_P[i] + evidence.failed_P[i] == 0
        first_N &= ~(chosen_by_it & ~np.isnan(evidence.logprob_P[i]))
        self._prior.observe(
            visits, self.untried.stratum_P[i].astype(np.int64), first_N.astype(np.float64)
        )
        if self._spec.discount == "auto":
            self._discounts.observe(visits, prior_alpha, prior_beta)
        evidence.count(visits, discount=self._discount(), backoff=self._spec.backoff)
        self._meet(i)
        alpha, beta = self.of(i)
        evidence.solved_P[i] = chance_above(_SOLVED_RATE, alpha, beta) > _SOLVED_CHANCE

    def observe_likelihood(self, logprobs: Mapping[str, float | None], *, step: int) -> None:
        """See Curriculum.observe_likelihood."""
        told = {
            self._pool.index(prompt_id): checked_logprob(prompt_id, value)
            for prompt_id, value in sorted(logprobs.items())
            if value is not None
        }
        mute = np.array(
            [self._pool.index(prompt_id) for prompt_id in logprobs if logprobs[prompt_id] is None],
            dtype=np.int64,
        )
        self.evidence.mute_P[mute] = True
        indices = np.array(list(told), dtype=np.int64)
        self.evidence.logprob_P[indices] = list(told.values())
        self.evidence.probed_P[indices] = step
        told_C, mute_C = (
            np.bincount(self._pool.capability_P[i], minlength=len(self._pool.capabilities))
            for i in (indices, mute)
        )
        self.likelihoods.asked(told_C, mute_C)
        self._meet(indices)

    def grow(self, prompts: Sequence[Prompt]) -> None:
        """Make room for prompts that were added to the pool."""
        bins = tag_bins(self._tags_of(prompts), self._edges)
        strata = self._prior.strata_of(prompts, bins)
        self.untried.grow(strata, rng=self._pool.rng)
        self.evidence.grow(len(prompts))

    def _learn_likelihoods(self, visits: Visits) -> None:
        evidence, i = self.evidence, visits.index_N
        fresh = ~np.isnan(evidence.logprob_P[i])
        fresh &= visits.step - evidence.probed_P[i] <= _FRESH_STEPS
        if not fresh.any():
            return
        alpha_S, beta_S = self.of_strata()
        s = self.untried.stratum_P[i]
        for c in range(len(self._pool.capabilities)):
            mine = np.flatnonzero(fresh & (self._pool.capability_P[i] == c))
            self.likelihoods.observe(
                c,
                evidence.logprob_P[i[mine]].astype(np.float64),
                visits.num_passed_N[mine],
                visits.num_decided_N[mine],
                prior=(alpha_S[s[mine]], beta_S[s[mine]]),
                evidence=(
                    evidence.passed_P[i[mine]].astype(np.float64),
                    evidence.failed_P[i[mine]].astype(np.float64),
                ),
            )

    def _meet(self, indices: Indices) -> None:
        new = indices[self.untried.is_untried_P[indices]]
        self.evidence.meet(new)
        self.untried.remove(new)

    def _tags_of(self, prompts: Sequence[Prompt]) -> Floats:
        """(P,) NaN where there is no tag."""
        return np.array([self._tags.get(p.prompt_id, math.nan) for p in prompts], dtype=np.float64)

    def state_dict(self) -> dict[str, Any]:
        """All that was learned."""
        return {
            "prior": self._prior.state_dict(),
            "untried": self.untried.state_dict(),
            "evidence": self.evidence.state_dict(),
            "discounts": self._discounts.state_dict(),
            "likelihoods": self.likelihoods.state_dict(),
            "calibration": self._calibration.state_dict(),
            "numbers": [self.step, self.num_generations, self._signal, self._num_rollouts],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._prior.load_state_dict(state["prior"])
        self.untried.load_state_dict(state["untried"])
        self.evidence.load_state_dict(state["evidence"])
        self._discounts.load_state_dict(state["discounts"])
        self.likelihoods.load_state_dict(state["likelihoods"])
        self._calibration.load_state_dict(state["calibration"])
        self.step, self.num_generations, self._signal, self._num_rollouts = state["numbers"]
