"""Adaptive: prompts whose next group will teach most, by a posterior that follows the policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, model_validator

from posttrain.curriculum.arrays import Ints, np
from posttrain.curriculum.beliefs import Beliefs
from posttrain.curriculum.beta import (
    best_pilot,
    leave_one_out_advantages,
    posterior_advantages,
    signal_per_remaining_rollout,
)
from posttrain.curriculum.counts import Inbox
from posttrain.curriculum.pool import Pool, check_kind
from posttrain.curriculum.protocol import CurriculumSpec, Proposal
from posttrain.curriculum.selection import Selection
from posttrain.records import Prompt, RolloutGroup
from posttrain.spec import Share, wrong

# Share of a batch's rollouts that pilots must promise to save, as they cost another round.
_PILOT_SAVES = 0.1
# A pilot is drawn to the end if the rest promises this share of the usual signal per rollout.
_CONTINUE_ABOVE = 0.7


class AdaptiveSpec(CurriculumSpec):
    """Prompts whose next group will teach most, by a posterior that follows the policy."""

    kind: Literal["adaptive"]
    tags: bool = True
    """Learn from difficulty tags where prompts have them."""
    probe: float = Field(default=4.0, ge=0.0)
    """Prompts whose reference answer's likelihood is scored per step, in batches; 0 turns the probe
    off. It turns itself off where it predicts no better than what is known without it."""
    discount: Share | Literal["auto"] = "auto"
    """Weight left to a prompt's older groups at each new one; auto chooses by predictive loss."""
    prior_pass_rate: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Pass rate expected before anything was seen."""
    prior_strength: float = Field(default=1.0, gt=0)
    """Rollouts that this expectation counts as, until it is learned how alike a stratum's prompts
    are."""
    shrinkage: float = Field(default=8.0, gt=0)
    """Groups a stratum needs to count as much as what it inherits."""
    centre: Share = 0.5
    """Pass rate at the centre of the band at first; it moves to 0.4 as a capability is mastered."""
    temperature: float = Field(default=0.15, gt=0)
    """Softmax temperature of sampling by score."""
    explore_min: Share = 0.005
    """Least share of a batch drawn at random among untried prompts."""
    explore_max: Share = 0.02
    """Greatest such share, reached where every group of the pool would be mixed."""
    review: Share = 0.01
    """Share of a batch for prompts that were solved, the longest unseen first."""
    retry: Share = 0.01
    """Share of a batch for unsolved prompts whose wait is over."""
    backoff: int = Field(default=6, ge=1)
    """Steps until a prompt without a pass comes again; doubles with each time."""
    pilot: bool = True
    """Draw a few rollouts of a group first where that saves some."""
    baseline: Literal["group", "posterior", "leave_one_out"] = "group"
    """Baseline of the advantage: the group's mean, or the posterior's, or the posterior's without
    the rollout itself."""

    @model_validator(mode="after")
    def _ordered(self) -> AdaptiveSpec:
        if self.explore_min > self.explore_max:
            raise wrong(f"must not be above explore_max ({self.explore_max:g})", "explore_min")
        if self.explore_max + self.review + self.retry > 1.0:
            raise wrong("with review and retry it is more than a batch", "explore_max")
        return self


class Adaptive:
    """Believes a Beta distribution per prompt and spends rollouts where groups will be mixed.

    docs/curriculum.md says how it decides; beliefs.py holds what it believes, selection.py how it
    fills a batch.
    """

    def __init__(
        self,
        spec: AdaptiveSpec,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        tags: Mapping[str, float] | None = None,
    ) -> None:
        self._spec = spec
        self._pool = Pool(prompts, quotas=spec.quotas, seed=seed)
        self._inbox = Inbox()
        self._beliefs = Beliefs(
            self._pool,
            prompts,
            tags=tags if tags and spec.tags else {},
            prior_pass_rate=spec.prior_pass_rate,
            prior_strength=spec.prior_strength,
            shrinkage=spec.shrinkage,
            discount=spec.discount,
            centre=spec.centre,
            backoff=spec.backoff,
        )
        self._selection = Selection(
            self._beliefs,
            self._pool,
            temperature=spec.temperature,
            explore_min=spec.explore_min,
            explore_max=spec.explore_max,
            review=spec.review,
            retry=spec.retry,
            uses_likelihoods=spec.probe > 0,
        )

    def propose(
        self,
        num_prompts: int,
        *,
        num_generations: int,
        exclude: Set[str] = frozenset(),
        capability: str | None = None,
    ) -> list[Proposal]:
        """Choose from what was observed before this call, see Curriculum.propose."""
        self._learn()
        self._beliefs.num_generations = num_generations
        self._selection.begin()
        proposals = self._pool.draw(
            num_prompts, self._selection.choose, exclude=exclude, capability=capability
        )
        self._selection.end()
        chosen = self._pool.indices([p.prompt_id for p in proposals])
        self._beliefs.evidence.mark_proposed(chosen)
        return self._with_beliefs(proposals, chosen)

    def continues(self, prompt_id: str, *, num_passed: int, num_decided: int) -> bool:
        """Return whether the rest promises enough of the usual signal per rollout.

        While no group has had any signal, of what the prompt's stratum promises.
        """
        more = self._beliefs.num_generations - num_decided
        usual = self._beliefs.signal_per_rollout
        if more <= 0 or not num_decided or math.isnan(usual):
            return True
        i = np.array([self._pool.index(prompt_id)])
        if not usual:
            s = int(self._beliefs.untried.stratum_P[i[0]])
            alpha_S, beta_S = self._beliefs.of_strata()
            usual = signal_per_remaining_rollout(
                float(alpha_S[s]),
                float(beta_S[s]),
                num_passed=0,
                num_decided=0,
                num_more=self._beliefs.num_generations,
            )
        alpha, beta = self._beliefs.of(i)
        promised = signal_per_remaining_rollout(
            float(alpha[0]),
            float(beta[0]),
            num_passed=num_passed,
            num_decided=num_decided,
            num_more=more,
        )
        return promised >= _CONTINUE_ABOVE * usual

    def observe(self, group: RolloutGroup) -> None:
        """Keep one scored group until the next proposal."""
        index = self._pool.index(group.prompt_id)
        self._inbox.put(group.step, index, group.num_passed, group.num_decided)

    def prompts_to_score(self, batch_size: int) -> list[str]:
        """Return `probe` batches of prompts while likelihoods predict pass rates."""
        if not self._spec.probe:
            return []
        self._learn()
        chosen = self._selection.prompts_to_score(round(self._spec.probe * batch_size))
        return [self._pool.prompt_ids[i] for i in chosen]

    def observe_likelihood(self, logprobs: Mapping[str, float | None], *, step: int) -> None:
        """Learn log-likelihoods of reference answers, see Curriculum.observe_likelihood."""
        self._beliefs.observe_likelihood(logprobs, step=step)

    def advantages(
        self, proposal: Proposal, outcomes: Sequence[bool | None], *, scale: bool
    ) -> list[float] | None:
        """Return advantages against the belief that the prompt was proposed with."""
        if self._spec.baseline == "group":
            return None
        passed_G = np.array([math.nan if passed is None else float(passed) for passed in outcomes])
        against = (
            posterior_advantages if self._spec.baseline == "posterior" else leave_one_out_advantages
        )
        alpha, beta = proposal.decision["alpha"], proposal.decision["beta"]
        return against(passed_G, alpha=alpha, beta=beta, scale=scale).tolist()

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Put new prompts into the pool."""
        self._pool.add(prompts)
        self._beliefs.grow(prompts)

    def posterior(self, prompt_id: str) -> tuple[float, float]:
        """Return alpha and beta of the belief about a prompt now."""
        alpha, beta = self._beliefs.of(np.array([self._pool.index(prompt_id)]))
        return float(alpha[0]), float(beta[0])

    def metrics(self) -> dict[str, float]:
        """Return the beliefs in numbers, as of the last proposal."""
        return self._beliefs.metrics()

    def reliability(self) -> list[tuple[float, float, int]]:
        """Return (mean predicted pass rate, observed one, rollouts) by tenths of the predicted."""
        return self._beliefs.calibration.reliability()

    def state_dict(self) -> dict[str, Any]:
        """Return everything the future depends on."""
        return {
            "kind": self._spec.kind,
            "pool": self._pool.state_dict(),
            "inbox": self._inbox.state_dict(),
            "beliefs": self._beliefs.state_dict(),
            "owed": self._selection.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; ValueError if it belongs to another kind or other prompts."""
        check_kind(state, self._spec.kind)
        self._pool.load_state_dict(state["pool"])
        self._inbox.load_state_dict(state["inbox"])
        self._beliefs.load_state_dict(state["beliefs"])
        self._selection.load_state_dict(state["owed"])

    def _learn(self) -> None:
        """Learn from what was observed since the last proposal."""
        for counts in self._inbox.take():
            self._beliefs.learn(counts)

    def _with_beliefs(self, proposals: Sequence[Proposal], chosen: Ints) -> list[Proposal]:
        """Return proposals with their beliefs, and with pilots if the batch gains by them."""
        if not proposals:
            return []
        whole = self._beliefs.num_generations
        alpha_N, beta_N = self._beliefs.of(chosen)
        num_N = np.full(len(chosen), whole)
        if self._spec.pilot:
            pilot_N, cost_N = best_pilot(alpha_N, beta_N, whole)
            # Pilots cost the whole batch another round of generation.
            if cost_N.mean() <= (1.0 - _PILOT_SAVES) * whole:
                num_N = pilot_N
        return [
            replace(
                proposal,
                num_pilot=num if num < whole else None,
                decision={**proposal.decision, "alpha": alpha, "beta": beta},
            )
            for proposal, num, alpha, beta in zip(
                proposals, num_N.tolist(), alpha_N.tolist(), beta_N.tolist(), strict=True
            )
        ]
