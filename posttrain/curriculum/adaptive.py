"""The prompts whose next group will teach most, under a posterior that follows the policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np

from posttrain.curriculum.beliefs import Beliefs
from posttrain.curriculum.inbox import Inbox
from posttrain.curriculum.pool import Choice, Indices, Mask, Pool, check_kind
from posttrain.curriculum.probe_targets import prompts_to_probe
from posttrain.curriculum.protocol import Proposal, Reason
from posttrain.curriculum.scoring import Candidates, Scoring
from posttrain.curriculum.selection import largest_gumbels, top
from posttrain.curriculum.spending import best_pilot, gain_of_rest
from posttrain.recipe.curricula import AdaptiveCurriculum
from posttrain.records import Prompt, RolloutGroup


class Adaptive:
    """See docs/curriculum.md."""

    def __init__(
        self,
        spec: AdaptiveCurriculum,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        tags: Mapping[str, float] | None = None,
    ) -> None:
        self._spec = spec
        self._pool = Pool(prompts, quotas=spec.quotas, seed=seed)
        self._inbox = Inbox()
        self._beliefs = Beliefs(spec, self._pool, prompts, tags=tags if spec.tags else None)
        num = len(self._pool.capabilities)
        self._owed: dict[Reason, list[float]] = {
            "explored": [0.0] * num,
            "reviewed": [0.0] * num,
            "retried": [0.0] * num,
        }
        self._scoring = Scoring(
            self._beliefs, self._pool, width=spec.width, temperature=spec.temperature
        )
        self._candidates: Candidates | None = None

    def propose(
        self,
        num_prompts: int,
        *,
        num_generations: int,
        exclude: Set[str] = frozenset(),
        capability: str | None = None,
    ) -> list[Proposal]:
        """See Curriculum.propose."""
        self._settle()
        self._beliefs.num_generations = num_generations
        self._candidates = self._scoring.known()
        proposals = self._pool.draw(
            num_prompts, self._choose, exclude=exclude, capability=capability
        )
        self._candidates = None
        chosen = self._pool.indices([p.prompt_id for p in proposals])
        self._beliefs.evidence.proposed_P[chosen] = self._beliefs.evidence.tick()
        return self._with_beliefs(proposals, chosen)

    def continues(self, prompt_id: str, *, num_passed: int, num_decided: int) -> bool:
        """Whether the rest promises enough of the usual signal per rollout.

        While no group has had any, of what its stratum promises.
        """
        more = self._beliefs.num_generations - num_decided
        usual = self._beliefs.signal_per_rollout
        if more <= 0 or not num_decided or math.isnan(usual):
            return True
        i = np.array([self._pool.index(prompt_id)])
        if not usual:
            s = int(self._beliefs.untried.stratum_P[i[0]])
            alpha_S, beta_S = self._beliefs.of_strata()
            usual = gain_of_rest(
                float(alpha_S[s]),
                float(beta_S[s]),
                num_passed=0,
                num_decided=0,
                num_more=self._beliefs.num_generations,
            )
        alpha, beta = self._beliefs.of(i)
        gain = gain_of_rest(
            float(alpha[0]),
            float(beta[0]),
            num_passed=num_passed,
            num_decided=num_decided,
            num_more=more,
        )
        return gain >= self._spec.continue_above * usual

    def observe(self, group: RolloutGroup) -> None:
        """See Curriculum.observe."""
        self._inbox.put(
            step=group.step,
            index=self._pool.index(group.prompt_id),
            num_passed=group.num_passed,
            num_decided=group.num_decided,
        )

    def to_probe(self, num_prompts: int) -> list[str]:
        """See prompts_to_probe."""
        if not self._spec.probe:
            return []
        self._settle()
        chosen = prompts_to_probe(num_prompts, self._scoring, probe_memory=self._spec.probe_memory)
        return [self._pool.prompt_ids[i] for i in chosen]

    def observe_likelihood(self, logprobs: Mapping[str, float | None], *, step: int) -> None:
        """See Curriculum.observe_likelihood."""
        self._beliefs.observe_likelihood(logprobs, step=step)

    def add(self, prompts: Sequence[Prompt]) -> None:
        """See Curriculum.add."""
        self._pool.add(prompts)
        self._beliefs.grow(prompts)

    def posterior(self, prompt_id: str) -> tuple[float, float]:
        """alpha and beta of what is believed of a prompt now."""
        alpha, beta = self._beliefs.of(np.array([self._pool.index(prompt_id)]))
        return float(alpha[0]), float(beta[0])

    def reliability(self) -> list[tuple[float, float, int]]:
        """See Calibration.reliability."""
        return self._beliefs.reliability()

    def metrics(self) -> dict[str, float]:
        """What is believed, as of the last proposal."""
        return self._beliefs.metrics()

    def state_dict(self) -> dict[str, Any]:
        """See Curriculum.state_dict."""
        return {
            "kind": "adaptive",
            "pool": self._pool.state_dict(),
            "inbox": self._inbox.state_dict(),
            "beliefs": self._beliefs.state_dict(),
            "owed": {reason: list(owed) for reason, owed in self._owed.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Curriculum.load_state_dict."""
        check_kind(state, "adaptive")
        self._pool.load_state_dict(state["pool"])
        self._inbox.load_state_dict(state["inbox"])
        self._beliefs.load_state_dict(state["beliefs"])
        self._owed = {reason: list(state["owed"][reason]) for reason in self._owed}

    # Choosing

    def _choose(self, capability: int, num_prompts: int, taken_P: Mask) -> list[Choice]:
        """See pool.Choose."""
        chosen: list[Choice] = []
        for reason in ("reviewed", "retried", "explored"):
            num = self._due(reason, capability, num_prompts, num_prompts - len(chosen))
            if num:
                found = self._set_aside(reason, capability, num, taken_P)
                chosen += self._choices(found, reason, capability)
        rest = num_prompts - len(chosen)
        if rest:
            found = self._best(capability, rest, taken_P)
            chosen += self._choices(found, "selected", capability)
        rest = num_prompts - len(chosen)
        if rest:
            found = self._anyone(capability, rest, taken_P)
            chosen += self._choices(found, "filled", capability)
        return chosen

    def _due(self, reason: Reason, capability: int, num_prompts: int, most: int) -> int:
        """How many places a reason has now; fractions are carried on, what cannot be had is not."""
        spec = self._spec
        share = {"reviewed": spec.review, "retried": spec.retry}.get(reason)
        if share is None:
            alive = float(self._beliefs.alive_C()[capability])
            share = min(max(spec.explore_max * alive, spec.explore_min), spec.explore_max)
        owed = self._owed[reason][capability] + share * num_prompts
        num = min(int(owed), most)
        self._owed[reason][capability] = min(owed - num, 1.0)
        return num

    def _set_aside(
        self, reason: Reason, capability: int, num: int, taken_P: Mask
    ) -> list[tuple[int, float]]:
        """Prompts that come whatever their score: solved, unsolved or unknown ones."""
        assert self._candidates is not None
        evidence = self._beliefs.evidence
        if reason == "explored":
            found = self._random_untried(capability, num, taken_P)
        else:
            index = self._candidates.index_N
            index = index[self._pool.capability_P[index] == capability]
            index = index[~taken_P[index]]
            wanted = (
                evidence.solved_P[index]
                if reason == "reviewed"
                else (evidence.failures_P[index] > 0)
                & (evidence.due_P[index] <= self._beliefs.step)
            )
            index = index[wanted]
            age = -evidence.proposed_P[index].astype(np.float64)
            found = index[top(age, num, self._pool.rng.random(len(index)))]
        taken_P[found] = True
        return [(i, math.nan) for i in found.tolist()]

    def _best(self, capability: int, num: int, taken_P: Mask) -> list[tuple[int, float]]:
        """By score, with chance, among known prompts and untried ones of all strata."""
        assert self._candidates is not None
        known = self._candidates
        evidence, rng = self._beliefs.evidence, self._pool.rng
        wanted = num
        found = self._to_calibrate(capability, num // 2, taken_P)
        num -= len(found)
        mine = self._pool.capability_P[known.index_N] == capability
        mine &= ~taken_P[known.index_N] & ~evidence.solved_P[known.index_N]
        mine &= evidence.failures_P[known.index_N] == 0
        index, score = known.index_N[mine], known.score_N[mine]
        keys = self._scoring.keys(score) + known.log_share + rng.gumbel(size=len(score))

        strata = self._beliefs.strata_of(capability)
        untried_scores = self._scoring.of_strata()[strata]
        noise = largest_gumbels(self._beliefs.untried.num_S[strata], num, rng)
        untried_keys = self._scoring.keys(untried_scores)[:, None] + noise
        everyone = np.concatenate([keys, untried_keys.ravel()])
        first = top(everyone, num, np.zeros(len(everyone)))
        first = first[everyone[first] > -np.inf]
        own = first[first < len(keys)]
        found += list(zip(index[own].tolist(), score[own].tolist(), strict=True))
        taken_P[index[own]] = True
        rows = (first[first >= len(keys)] - len(keys)) // num
        for row in np.unique(rows).tolist():
            new = self._beliefs.untried.first(int(strata[row]), int(np.sum(rows == row)), taken_P)
            taken_P[new] = True
            found += [(i, float(untried_scores[row])) for i in new.tolist()]
        if len(first) == num and len(found) < wanted:
            # Some of the untried are taken: go on with what is left.
            found += self._scoring.untried(capability, wanted - len(found), taken_P)
        return found

    def _to_calibrate(self, capability: int, num: int, taken_P: Mask) -> list[tuple[int, float]]:
        """Prompts with a likelihood in place of untried ones, until it is known what that tells."""
        assert self._candidates is not None
        if not self._spec.probe or self._beliefs.likelihoods.is_tested(capability):
            return []
        evidence, index = self._beliefs.evidence, self._candidates.index_N
        new = evidence.passed_P[index] + evidence.failed_P[index] == 0
        new &= ~np.isnan(evidence.logprob_P[index]) & (evidence.failures_P[index] == 0)
        new &= (self._pool.capability_P[index] == capability) & ~taken_P[index]
        at = np.flatnonzero(new)
        recent = evidence.probed_P[index[at]].astype(np.float64)
        at = at[top(recent, num, self._pool.rng.random(len(at)))]
        taken_P[index[at]] = True
        scores = self._candidates.score_N[at]
        return list(zip(index[at].tolist(), scores.tolist(), strict=True))

    def _random_untried(self, capability: int, num: int, taken_P: Mask) -> Indices:
        """Untried prompts of a capability, each as likely as any other."""
        strata = self._beliefs.strata_of(capability)
        left = self._beliefs.untried.num_S[strata]
        num = min(num, int(left.sum()))
        if not num:
            return np.zeros(0, dtype=np.int64)
        parts = self._pool.rng.multivariate_hypergeometric(left, num)
        found = [
            self._beliefs.untried.first(int(s), int(n), taken_P)
            for s, n in zip(strata, parts, strict=True)
            if n
        ]
        return np.concatenate(found).astype(np.int64)

    def _anyone(self, capability: int, num: int, taken_P: Mask) -> list[tuple[int, float]]:
        """Whoever is left, the longest unseen first."""
        members = self._pool.members(capability)
        left = members[~taken_P[members]]
        age = -self._beliefs.evidence.proposed_P[left].astype(np.float64)
        found = left[top(age, num, self._pool.rng.random(len(left)))]
        taken_P[found] = True
        return [(i, math.nan) for i in found.tolist()]

    def _with_beliefs(self, proposals: Sequence[Proposal], chosen: Indices) -> list[Proposal]:
        """Proposals with what is believed of them, and pilots where the batch gains by them."""
        if not proposals:
            return []
        alpha_N, beta_N = self._beliefs.of(chosen)
        num_N = np.full(len(chosen), self._beliefs.num_generations)
        if self._spec.pilot:
            pilot_N, cost_N = best_pilot(alpha_N, beta_N, self._beliefs.num_generations)
            # Pilots cost the whole batch another round of generation.
            if cost_N.mean() <= (1.0 - self._spec.pilot_saves) * self._beliefs.num_generations:
                num_N = pilot_N
        return [
            replace(
                proposal,
                num_pilot=num if num < self._beliefs.num_generations else None,
                decision={**proposal.decision, "alpha": alpha, "beta": beta},
            )
            for proposal, num, alpha, beta in zip(
                proposals, num_N.tolist(), alpha_N.tolist(), beta_N.tolist(), strict=True
            )
        ]

    def _choices(
        self, found: Sequence[tuple[int, float]], reason: Reason, capability: int
    ) -> list[Choice]:
        shared = {
            "centre": float(self._beliefs.centre_C()[capability]),
            "share": self._pool.share(capability),
        }
        return [
            Choice(index=i, reason=reason, decision={**shared, "score": score})
            if not math.isnan(score)
            else Choice(index=i, reason=reason, decision=shared)
            for i, score in found
        ]

    def _settle(self) -> None:
        """Learn from what was put since the last proposal."""
        for visits in self._inbox.take():
            self._beliefs.learn(visits)
