"""The prompts whose next group will teach most, under a posterior that follows the policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from posttrain.curriculum.calibration import Calibration
from posttrain.curriculum.discount import DiscountChoice
from posttrain.curriculum.evidence import Evidence
from posttrain.curriculum.inbox import Inbox, Visits
from posttrain.curriculum.pool import Choice, Indices, Mask, Pool, check_kind
from posttrain.curriculum.posterior import Floats, Ints, chance_above, group_signal
from posttrain.curriculum.prior import StratumPrior, tag_bins, tag_edges
from posttrain.curriculum.probe import LikelihoodMap, checked_logprob
from posttrain.curriculum.protocol import Proposal, Reason
from posttrain.curriculum.selection import band, expected_signal, largest_gumbels, top
from posttrain.curriculum.spending import best_pilot, gain_of_rest
from posttrain.curriculum.untried import Untried
from posttrain.recipe.curricula import AdaptiveCurriculum
from posttrain.records import Prompt, RolloutGroup

# Of the prompts with evidence of their own, so many are looked at for one proposal, by chance.
_MAX_SCORED = 16_384
_SOLVED_RATE, _SOLVED_CHANCE = 0.9, 0.8
# Weight left at each step to the usual signal per rollout.
_RATE_KEPT = 0.9
_FRESH_STEPS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidates:
    """Some of the known prompts, scored for one proposal."""

    index_N: Indices
    alpha_N: Floats
    beta_N: Floats
    score_N: Floats
    log_share: float
    """Log of known prompts per candidate."""


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
        self._tags: Mapping[str, float] = tags if tags is not None and spec.tags else {}
        self._pool = Pool(prompts, quotas=spec.quotas, seed=seed)
        self._inbox = Inbox()
        self._step = 0
        self._num_generations = 8
        tags_P = self._tags_of(prompts)
        self._edges = tag_edges(tags_P, spec.tag_bins)
        self._prior = StratumPrior(
            mean=spec.prior_pass_rate,
            strength=spec.prior_strength,
            shrinkage=spec.shrinkage,
            memory=spec.stratum_memory,
        )
        strata_P = self._prior.strata_of(prompts, tag_bins(tags_P, self._edges))
        self._untried = Untried(strata_P, rng=self._pool.rng)
        self._evidence = Evidence(len(prompts))
        self._discounts = DiscountChoice(0.5 if spec.discount == "auto" else spec.discount)
        num = len(self._pool.capabilities)
        self._likelihoods = LikelihoodMap(num, memory=512, evidence_kept=0.97)
        self._calibration = Calibration()
        self._owed: dict[Reason, list[float]] = {
            "explored": [0.0] * num,
            "reviewed": [0.0] * num,
            "retried": [0.0] * num,
        }
        self._signal, self._num_rollouts = 0.0, 0.0
        self._candidates: _Candidates | None = None

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
        self._num_generations = num_generations
        self._candidates = self._score_known()
        proposals = self._pool.draw(
            num_prompts, self._choose, exclude=exclude, capability=capability
        )
        self._candidates = None
        chosen = self._pool.indices([p.prompt_id for p in proposals])
        self._evidence.proposed_P[chosen] = self._evidence.tick()
        return self._with_beliefs(proposals, chosen)

    def continues(self, prompt_id: str, *, num_passed: int, num_decided: int) -> bool:
        """Whether the rest promises enough of the usual signal per rollout."""
        more = self._num_generations - num_decided
        if more <= 0 or not num_decided or not self._num_rollouts:
            return True
        i = np.array([self._pool.index(prompt_id)])
        alpha, beta = self._beliefs(i)
        gain = gain_of_rest(
            float(alpha[0]),
            float(beta[0]),
            num_passed=num_passed,
            num_decided=num_decided,
            num_more=more,
        )
        return gain >= self._spec.continue_above * self._signal / self._num_rollouts

    def observe(self, group: RolloutGroup) -> None:
        """See Curriculum.observe."""
        self._inbox.put(
            step=group.step,
            index=self._pool.index(group.prompt_id),
            num_passed=group.num_passed,
            num_decided=group.num_decided,
        )

    def to_probe(self, num_prompts: int) -> list[str]:
        """Untried prompts by their stratum's score, and a quarter to refresh."""
        if not self._spec.probe:
            return []
        self._settle()
        taken_P = self._pool.capability_P < 0
        useful = [c for c in range(len(self._pool.capabilities)) if self._likelihoods.is_useful(c)]
        chosen: list[int] = []
        for n, c in enumerate(useful):
            places = num_prompts // len(useful) + (n < num_prompts % len(useful))
            stale = self._stalest(c, places // 4)
            fresh = self._untried_by_score(c, places - len(stale), taken_P)
            chosen += [*stale.tolist(), *(i for i, _ in fresh)]
        return [self._pool.prompt_ids[i] for i in chosen]

    def observe_likelihood(self, logprobs: Mapping[str, float], *, step: int) -> None:
        """See Curriculum.observe_likelihood."""
        ids = sorted(logprobs)
        values = [checked_logprob(prompt_id, logprobs[prompt_id]) for prompt_id in ids]
        indices = np.array([self._pool.index(prompt_id) for prompt_id in ids], dtype=np.int64)
        self._evidence.logprob_P[indices] = values
        self._evidence.probed_P[indices] = step
        self._meet(indices)

    def add(self, prompts: Sequence[Prompt]) -> None:
        """See Curriculum.add."""
        self._pool.add(prompts)
        bins = tag_bins(self._tags_of(prompts), self._edges)
        strata = self._prior.strata_of(prompts, bins)
        self._untried.grow(strata, rng=self._pool.rng)
        self._evidence.grow(len(prompts))

    def posterior(self, prompt_id: str) -> tuple[float, float]:
        """alpha and beta of what is believed of a prompt now."""
        alpha, beta = self._beliefs(np.array([self._pool.index(prompt_id)]))
        return float(alpha[0]), float(beta[0])

    def reliability(self) -> list[tuple[float, float, int]]:
        """See Calibration.reliability."""
        return self._calibration.reliability()

    def metrics(self) -> dict[str, float]:
        """What is believed, as of the last proposal."""
        evidence, pool = self._evidence, self._pool
        known_C = pool.capability_P[evidence.known]
        told = {
            "curriculum/discount": self._discount(),
            "curriculum/signal_per_rollout": self._signal / self._num_rollouts
            if self._num_rollouts
            else math.nan,
            **{f"curriculum/{k}": v for k, v in self._calibration.metrics().items()},
        }
        signal_S = self._stratum_signal()
        mean_S, _ = self._prior.parameters()
        weight_C = self._likelihoods.weight_C
        for c, name in enumerate(pool.capabilities):
            strata = self._strata_of(c)
            sizes = self._untried.size_S[strata]
            mine = evidence.known[known_C == c]
            told |= {
                f"curriculum/{name}/known": len(mine) / float(sizes.sum()),
                f"curriculum/{name}/solved": float(evidence.solved_P[mine].sum()) / sizes.sum(),
                f"curriculum/{name}/unsolved": float((evidence.failures_P[mine] > 0).sum())
                / sizes.sum(),
                f"curriculum/{name}/pass_rate": float(np.average(mean_S[strata], weights=sizes)),
                f"curriculum/{name}/alive": float(np.average(signal_S[strata], weights=sizes)),
                f"curriculum/{name}/centre": float(self._centre_C()[c]),
                f"curriculum/{name}/probe_weight": float(weight_C[c]),
            }
        return told

    def state_dict(self) -> dict[str, Any]:
        """See Curriculum.state_dict."""
        return {
            "kind": "adaptive",
            "pool": self._pool.state_dict(),
            "inbox": self._inbox.state_dict(),
            "prior": self._prior.state_dict(),
            "untried": self._untried.state_dict(),
            "evidence": self._evidence.state_dict(),
            "discounts": self._discounts.state_dict(),
            "likelihoods": self._likelihoods.state_dict(),
            "calibration": self._calibration.state_dict(),
            "owed": {reason: list(owed) for reason, owed in self._owed.items()},
            "numbers": [self._step, self._num_generations, self._signal, self._num_rollouts],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Curriculum.load_state_dict."""
        check_kind(state, "adaptive")
        self._pool.load_state_dict(state["pool"])
        self._inbox.load_state_dict(state["inbox"])
        self._prior.load_state_dict(state["prior"])
        self._untried.load_state_dict(state["untried"])
        self._evidence.load_state_dict(state["evidence"])
        self._discounts.load_state_dict(state["discounts"])
        self._likelihoods.load_state_dict(state["likelihoods"])
        self._calibration.load_state_dict(state["calibration"])
        self._owed = {reason: list(state["owed"][reason]) for reason in self._owed}
        self._step, self._num_generations, self._signal, self._num_rollouts = state["numbers"]

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
            alive = float(self._alive_C()[capability])
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
        evidence = self._evidence
        if reason == "explored":
            found = self._random_untried(capability, num, taken_P)
        else:
            index = self._candidates.index_N
            index = index[self._pool.capability_P[index] == capability]
            index = index[~taken_P[index]]
            wanted = (
                evidence.solved_P[index]
                if reason == "reviewed"
                else (evidence.failures_P[index] > 0) & (evidence.due_P[index] <= self._step)
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
        evidence, rng = self._evidence, self._pool.rng
        wanted = num
        found = self._to_calibrate(capability, num // 2, taken_P)
        num -= len(found)
        mine = self._pool.capability_P[known.index_N] == capability
        mine &= ~taken_P[known.index_N] & ~evidence.solved_P[known.index_N]
        mine &= evidence.failures_P[known.index_N] == 0
        index, score = known.index_N[mine], known.score_N[mine]
        with np.errstate(divide="ignore"):
            keys = np.log(score) / self._spec.temperature + known.log_share
        keys = keys + rng.gumbel(size=len(keys))

        strata = self._strata_of(capability)
        untried_scores = self._stratum_scores()[strata]
        untried_keys = np.log(untried_scores)[:, None] / self._spec.temperature + largest_gumbels(
            self._untried.num_S[strata], num, rng
        )
        everyone = np.concatenate([keys, untried_keys.ravel()])
        first = top(everyone, num, np.zeros(len(everyone)))
        first = first[everyone[first] > -np.inf]
        own = first[first < len(keys)]
        found += list(zip(index[own].tolist(), score[own].tolist(), strict=True))
        taken_P[index[own]] = True
        rows = (first[first >= len(keys)] - len(keys)) // num
        for row in np.unique(rows).tolist():
            new = self._untried.first(int(strata[row]), int(np.sum(rows == row)), taken_P)
            taken_P[new] = True
            found += [(i, float(untried_scores[row])) for i in new.tolist()]
        if len(first) == num and len(found) < wanted:
            # Some of the untried are taken: go on with what is left.
            found += self._untried_by_score(capability, wanted - len(found), taken_P)
        return found

    def _to_calibrate(self, capability: int, num: int, taken_P: Mask) -> list[tuple[int, float]]:
        """Prompts with a likelihood in place of untried ones, until it is known what that tells."""
        assert self._candidates is not None
        if not self._spec.probe or self._likelihoods.is_tested(capability):
            return []
        evidence, index = self._evidence, self._candidates.index_N
        new = evidence.passed_P[index] + evidence.failed_P[index] == 0
        new &= (self._pool.capability_P[index] == capability) & ~taken_P[index]
        at = np.flatnonzero(new)
        recent = evidence.probed_P[index[at]].astype(np.float64)
        at = at[top(recent, num, self._pool.rng.random(len(at)))]
        taken_P[index[at]] = True
        scores = self._candidates.score_N[at]
        return list(zip(index[at].tolist(), scores.tolist(), strict=True))

    def _untried_by_score(
        self, capability: int, num: int, taken_P: Mask
    ) -> list[tuple[int, float]]:
        strata = self._strata_of(capability)
        scores = self._stratum_scores()[strata]
        keys = np.log(scores)[:, None] / self._spec.temperature + largest_gumbels(
            self._untried.num_S[strata], num, self._pool.rng
        )
        first = top(keys.ravel(), num, np.zeros(keys.size))
        first = first[keys.ravel()[first] > -np.inf]
        found: list[tuple[int, float]] = []
        for row in np.unique(first // max(num, 1)).tolist():
            wanted = int(np.sum(first // num == row))
            new = self._untried.first(int(strata[row]), wanted, taken_P)
            taken_P[new] = True
            found += [(i, float(scores[row])) for i in new.tolist()]
        return found

    def _random_untried(self, capability: int, num: int, taken_P: Mask) -> Indices:
        """Untried prompts of a capability, each as likely as any other."""
        strata = self._strata_of(capability)
        left = self._untried.num_S[strata]
        num = min(num, int(left.sum()))
        if not num:
            return np.zeros(0, dtype=np.int64)
        parts = self._pool.rng.multivariate_hypergeometric(left, num)
        found = [
            self._untried.first(int(s), int(n), taken_P)
            for s, n in zip(strata, parts, strict=True)
            if n
        ]
        return np.concatenate(found).astype(np.int64)

    def _anyone(self, capability: int, num: int, taken_P: Mask) -> list[tuple[int, float]]:
        """Whoever is left, the longest unseen first."""
        members = self._pool.members(capability)
        left = members[~taken_P[members]]
        age = -self._evidence.proposed_P[left].astype(np.float64)
        found = left[top(age, num, self._pool.rng.random(len(left)))]
        taken_P[found] = True
        return [(i, math.nan) for i in found.tolist()]

    def _with_beliefs(self, proposals: Sequence[Proposal], chosen: Indices) -> list[Proposal]:
        """Proposals with what is believed of them, and pilots where the batch gains by them."""
        if not proposals:
            return []
        alpha_N, beta_N = self._beliefs(chosen)
        num_N = np.full(len(chosen), self._num_generations)
        if self._spec.pilot:
            pilot_N, cost_N = best_pilot(alpha_N, beta_N, self._num_generations)
            # Pilots cost the whole batch another round of generation.
            if cost_N.mean() <= (1.0 - self._spec.pilot_saves) * self._num_generations:
                num_N = pilot_N
        return [
            replace(
                proposal,
                num_pilot=num if num < self._num_generations else None,
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
            "centre": float(self._centre_C()[capability]),
            "share": self._pool.share(capability),
        }
        return [
            Choice(index=i, reason=reason, decision={**shared, "score": score})
            if not math.isnan(score)
            else Choice(index=i, reason=reason, decision=shared)
            for i, score in found
        ]

    def _stalest(self, capability: int, num: int) -> Indices:
        """Prompts whose likelihood is oldest, of those that are neither solved nor waiting."""
        evidence = self._evidence
        index = evidence.known[self._pool.capability_P[evidence.known] == capability]
        index = index[~evidence.solved_P[index] & (evidence.due_P[index] <= self._step)]
        old = evidence.probed_P[index] < self._step - self._spec.probe_memory / 2
        index = index[old & ~np.isnan(evidence.logprob_P[index])]
        ages = -evidence.probed_P[index].astype(np.float64)
        return index[top(ages, num, self._pool.rng.random(len(index)))].astype(np.int64)

    # Believing

    def _score_known(self) -> _Candidates:
        known = self._evidence.known.astype(np.int64)
        log_share = 0.0
        if len(known) > _MAX_SCORED:
            drawn = np.unique(self._pool.rng.integers(len(known), size=_MAX_SCORED))
            log_share = math.log(len(known) / len(drawn))
            known = known[drawn]
        alpha, beta = self._beliefs(known)
        centre = self._centre_C()[np.maximum(self._pool.capability_P[known], 0)]
        return _Candidates(
            index_N=known,
            alpha_N=alpha,
            beta_N=beta,
            score_N=self._scores(alpha, beta, centre),
            log_share=log_share,
        )

    def _scores(self, alpha: Floats, beta: Floats, centre: Floats) -> Floats:
        return expected_signal(alpha, beta, self._num_generations) * band(
            alpha, beta, centre=centre, width=self._spec.width
        )

    def _stratum_scores(self) -> Floats:
        mean_S, strength_S = self._prior.parameters()
        capability_S = self._capability_S()
        centre_S = self._centre_C()[np.maximum(capability_S, 0)]
        return self._scores(mean_S * strength_S, (1 - mean_S) * strength_S, centre_S)

    def _beliefs(self, index_N: Ints) -> tuple[Floats, Floats]:
        """alpha, beta of each prompt."""
        alpha, beta = self._priors(index_N)
        alpha = alpha + self._evidence.passed_P[index_N]
        beta = beta + self._evidence.failed_P[index_N]
        return alpha, beta

    def _priors(self, index_N: Ints) -> tuple[Floats, Floats]:
        """alpha, beta without the prompt's own rollouts: its stratum, and its likelihood."""
        mean_S, strength_S = self._prior.parameters()
        s = self._untried.stratum_P[index_N]
        alpha, beta = mean_S[s] * strength_S[s], (1.0 - mean_S[s]) * strength_S[s]
        evidence = self._evidence
        logprob_N = evidence.logprob_P[index_N].astype(np.float64)
        weight_C = self._likelihoods.weight_C
        if np.isnan(logprob_N).all() or not weight_C.any():
            return alpha, beta
        capability_N = self._pool.capability_P[index_N]
        age_N = np.maximum(self._step - evidence.probed_P[index_N], 0)
        for c in np.flatnonzero(weight_C).tolist():
            probed = np.flatnonzero((capability_N == c) & ~np.isnan(logprob_N))
            mean, strength = self._likelihoods.beliefs(c, logprob_N[probed])
            w = weight_C[c] * 0.5 ** (age_N[probed] / self._spec.probe_memory)
            alpha[probed] = (1 - w) * alpha[probed] + w * mean * strength
            beta[probed] = (1 - w) * beta[probed] + w * (1 - mean) * strength
        return alpha, beta

    def _stratum_signal(self) -> Floats:
        mean_S, strength_S = self._prior.parameters()
        return group_signal(mean_S * strength_S, (1 - mean_S) * strength_S, self._num_generations)

    def _alive_C(self) -> Floats:
        """(C,) expected share of a capability's prompts that a group of which would have signal."""
        return self._by_capability(self._stratum_signal())

    def _centre_C(self) -> Floats:
        """(C,) the band's centre: towards harder as the capability's pass rate rises."""
        spec = self._spec
        mean_S, _ = self._prior.parameters()
        mastered_C = np.clip((self._by_capability(mean_S) - 0.25) / 0.5, 0.0, 1.0)
        return spec.centre - (spec.centre - spec.hard_centre) * mastered_C

    def _by_capability(self, values_S: Floats) -> Floats:
        """(C,) means over strata, by their sizes."""
        capability_S = self._capability_S()
        used = capability_S >= 0
        num = len(self._pool.capabilities)
        sizes_S = self._untried.size_S[used]
        total_C = np.bincount(capability_S[used], sizes_S * values_S[used], num)
        return total_C / np.maximum(np.bincount(capability_S[used], sizes_S, num), 1.0)

    def _capability_S(self) -> Ints:
        numbers = {name: c for c, name in enumerate(self._pool.capabilities)}
        return np.array([numbers.get(s[0], -1) for s in self._prior.strata], dtype=np.int64)

    def _strata_of(self, capability: int) -> Ints:
        return np.flatnonzero(self._capability_S() == capability)

    # Learning

    def _settle(self) -> None:
        """Learn from what was put since the last proposal."""
        for visits in self._inbox.take():
            self._learn(visits)

    def _learn(self, visits: Visits) -> None:
        if visits.step > self._step:
            faded = _RATE_KEPT ** (visits.step - self._step)
            self._signal, self._num_rollouts = self._signal * faded, self._num_rollouts * faded
            self._step = visits.step
        evidence, i = self._evidence, visits.index_N
        c, n = visits.num_passed_N, visits.num_decided_N
        self._signal += float(np.sum(c * (n - c) / n))
        self._num_rollouts += float(n.sum())

        prior_alpha, prior_beta = self._priors(i)
        alpha, beta = self._beliefs(i)
        self._calibration.observe(alpha, beta, c, n)
        self._learn_likelihoods(visits)
        # Once likelihoods decide, those who have one are no sample of their stratum.
        chosen_by_it = self._likelihoods.weight_C[np.maximum(self._pool.capability_P[i], 0)] > 0
        first_N = evidence.passed_P[i] + evidence.failed_P[i] == 0
        first_N &= ~(chosen_by_it & ~np.isnan(evidence.logprob_P[i]))
        self._prior.observe(
            visits, self._untried.stratum_P[i].astype(np.int64), first_N.astype(np.float64)
        )
        if self._spec.discount == "auto":
            self._discounts.observe(visits, prior_alpha, prior_beta)
        evidence.count(visits, discount=self._discount(), backoff=self._spec.backoff)
        self._meet(i)
        alpha, beta = self._beliefs(i)
        evidence.solved_P[i] = chance_above(_SOLVED_RATE, alpha, beta) > _SOLVED_CHANCE

    def _learn_likelihoods(self, visits: Visits) -> None:
        evidence, i = self._evidence, visits.index_N
        fresh = ~np.isnan(evidence.logprob_P[i])
        fresh &= visits.step - evidence.probed_P[i] <= _FRESH_STEPS
        if not fresh.any():
            return
        mean_S, strength_S = self._prior.parameters()
        s = self._untried.stratum_P[i]
        alpha, beta = mean_S[s] * strength_S[s], (1.0 - mean_S[s]) * strength_S[s]
        for c in range(len(self._pool.capabilities)):
            mine = np.flatnonzero(fresh & (self._pool.capability_P[i] == c))
            self._likelihoods.observe(
                c,
                evidence.logprob_P[i[mine]].astype(np.float64),
                visits.num_passed_N[mine],
                visits.num_decided_N[mine],
                prior=(alpha[mine], beta[mine]),
                evidence=(
                    evidence.passed_P[i[mine]].astype(np.float64),
                    evidence.failed_P[i[mine]].astype(np.float64),
                ),
            )

    def _meet(self, indices: Indices) -> None:
        new = indices[self._untried.is_untried_P[indices]]
        self._evidence.meet(new)
        self._untried.remove(new)

    def _discount(self) -> float:
        chosen = self._spec.discount
        return self._discounts.best if chosen == "auto" else chosen

    def _tags_of(self, prompts: Sequence[Prompt]) -> Floats:
        """(P,) NaN where there is no tag."""
        tags = np.array([self._tags.get(p.prompt_id, math.nan) for p in prompts], dtype=np.float64)
        if np.isinf(tags).any():
            raise ValueError("a difficulty tag is infinite; give a number, or leave it out")
        return tags
