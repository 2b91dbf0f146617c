"""Fill a batch for the adaptive curriculum: some places are set aside, most go by score."""

from __future__ import annotations

import math
from dataclasses import dataclass

from posttrain.curriculum.arrays import Floats, Ints, Mask, np
from posttrain.curriculum.beliefs import LIKELIHOOD_HALF_LIFE, Beliefs
from posttrain.curriculum.beta import expected_variance, mixed_probability, signal_pass_rate
from posttrain.curriculum.pool import Choice, Pool, largest
from posttrain.curriculum.protocol import Reason

# Of the prompts with evidence of their own, at most this many are scored per proposal, at random.
_MAX_SCORED = 16_384
# Standard deviation of the band.
_BAND_WIDTH = 0.25

Found = list[tuple[int, float]]
"""(index, score) of chosen prompts; NaN where the score did not matter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Known prompts, or a sample of them, scored for one proposal."""

    index_N: Ints
    score_N: Floats
    log_share: float
    """Log of known prompts per candidate."""


class Selection:
    """Fills a batch from the beliefs.

    The score of a prompt is its expected signal times a band around the capability's centre.
    Prompts are sampled in proportion to score ** (1 / temperature); untried ones share their
    stratum's score.
    """

    def __init__(
        self,
        beliefs: Beliefs,
        pool: Pool,
        *,
        temperature: float,
        explore_min: float,
        explore_max: float,
        review: float,
        retry: float,
        uses_likelihoods: bool,
    ) -> None:
        self._beliefs, self._pool = beliefs, pool
        self._temperature = temperature
        self._explore_min, self._explore_max = explore_min, explore_max
        self._shares: dict[Reason, float] = {"reviewed": review, "retried": retry}
        self._uses_likelihoods = uses_likelihoods
        num = len(pool.capabilities)
        # Per capability, the fractions of places that a reason is still owed.
        self._owed: dict[Reason, list[float]] = {
            "explored": [0.0] * num,
            "reviewed": [0.0] * num,
            "retried": [0.0] * num,
        }
        self._candidates: Candidates | None = None

    def begin(self) -> None:
        """Score the known prompts for one proposal."""
        self._candidates = self._score_known()

    def end(self) -> None:
        """Forget the scores."""
        self._candidates = None

    def choose(self, capability: int, num_prompts: int, taken_P: Mask) -> list[Choice]:
        """Choose prompts of one capability, see pool.Choose."""
        chosen: list[Choice] = []
        for reason in ("reviewed", "retried", "explored"):
            num = self._places(reason, capability, num_prompts, num_prompts - len(chosen))
            if num:
                found = self._set_aside(reason, capability, num, taken_P)
                chosen += self._choices(found, reason, capability)
        rest = num_prompts - len(chosen)
        if rest:
            found = self._by_score(capability, rest, taken_P)
            chosen += self._choices(found, "selected", capability)
        rest = num_prompts - len(chosen)
        if rest:
            found = self._longest_unseen(capability, rest, taken_P)
            chosen += self._choices(found, "filled", capability)
        return chosen

    def prompts_to_score(self, num_prompts: int) -> list[int]:
        """Return prompts whose likelihood to ask for: untried ones by score, a quarter stale ones.

        Places are shared by the capabilities in which likelihoods predict pass rates.
        """
        beliefs, pool = self._beliefs, self._pool
        unscorable_P, untried = beliefs.evidence.unscorable_P, beliefs.untried
        taken_P = (pool.capability_P < 0) | unscorable_P
        useful = [c for c in range(len(pool.capabilities)) if beliefs.likelihoods.is_useful(c)]
        # A stratum without any answer to score must not keep others out.
        unscorable = untried.stratum_P[unscorable_P & untried.is_untried_P]
        left_S = untried.num_S - np.bincount(unscorable, minlength=len(untried.num_S))
        chosen: list[int] = []
        for n, c in enumerate(useful):
            places = num_prompts // len(useful) + (n < num_prompts % len(useful))
            stale = self._stalest(c, places // 4)
            fresh = self._untried_by_score(c, places - len(stale), taken_P, left_S)
            chosen += [*stale.tolist(), *(i for i, _ in fresh)]
        return chosen

    def state_dict(self) -> dict[str, list[float]]:
        """Return the fractions of places still owed."""
        return {reason: list(owed) for reason, owed in self._owed.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Continue from `state`."""
        self._owed = {reason: list(state[reason]) for reason in self._owed}

    # Scores

    def _score_known(self) -> Candidates:
        beliefs, pool = self._beliefs, self._pool
        known = beliefs.evidence.known.astype(np.int64)
        log_share = 0.0
        if len(known) > _MAX_SCORED:
            drawn = np.unique(pool.rng.integers(len(known), size=_MAX_SCORED))
            log_share = math.log(len(known) / len(drawn))
            known = known[drawn]
        alpha, beta = beliefs.of(known)
        centre = beliefs.centre_C()[np.maximum(pool.capability_P[known], 0)]
        return Candidates(
            index_N=known, score_N=self._scores(alpha, beta, centre), log_share=log_share
        )

    def _score_strata(self) -> Floats:
        """Return (S,) the score of each stratum's untried prompts."""
        beliefs = self._beliefs
        centre_S = beliefs.centre_C()[np.maximum(beliefs.capability_S(), 0)]
        return self._scores(*beliefs.of_strata(), centre_S)

    def _scores(self, alpha: Floats, beta: Floats, centre: Floats) -> Floats:
        signal = expected_signal(alpha, beta, self._beliefs.num_generations)
        return signal * np.exp(-0.5 * ((signal_pass_rate(alpha, beta) - centre) / _BAND_WIDTH) ** 2)

    def _log_weights(self, scores: Floats) -> Floats:
        """Return log-weights; with Gumbel noise added, the largest are a sample by them."""
        with np.errstate(divide="ignore"):
            return np.log(scores) / self._temperature

    # Places set aside, whatever the score

    def _places(self, reason: Reason, capability: int, num_prompts: int, most: int) -> int:
        """Return the places a reason has now; fractions carry over, unfilled places do not."""
        share = self._shares.get(reason)
        if share is None:
            mixed = float(self._beliefs.mixed_share_C()[capability])
            share = min(max(self._explore_max * mixed, self._explore_min), self._explore_max)
        owed = self._owed[reason][capability] + share * num_prompts
        num = min(int(owed), most)
        self._owed[reason][capability] = min(owed - num, 1.0)
        return num

    def _set_aside(self, reason: Reason, capability: int, num: int, taken_P: Mask) -> Found:
        """Take solved prompts, unsolved ones whose wait is over, or random untried ones."""
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
            found = index[largest(age, num, self._pool.rng.random(len(index)))]
        taken_P[found] = True
        return [(i, math.nan) for i in found.tolist()]

    def _random_untried(self, capability: int, num: int, taken_P: Mask) -> Ints:
        """Return untried prompts of a capability, each as likely as any other."""
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

    # Places by score

    def _by_score(self, capability: int, num: int, taken_P: Mask) -> Found:
        """Sample among known prompts and the untried ones of all strata."""
        assert self._candidates is not None
        known = self._candidates
        evidence, rng = self._beliefs.evidence, self._pool.rng
        wanted = num
        found = self._scored_prompts(capability, num // 2, taken_P)
        num -= len(found)
        mine = self._pool.capability_P[known.index_N] == capability
        mine &= ~taken_P[known.index_N] & ~evidence.solved_P[known.index_N]
        mine &= evidence.failures_P[known.index_N] == 0
        index, score = known.index_N[mine], known.score_N[mine]
        keys = self._log_weights(score) + known.log_share + rng.gumbel(size=len(score))

        strata = self._beliefs.strata_of(capability)
        untried_scores = self._score_strata()[strata]
        noise = largest_gumbels(self._beliefs.untried.num_S[strata], num, rng)
        untried_keys = self._log_weights(untried_scores)[:, None] + noise
        all_keys = np.concatenate([keys, untried_keys.ravel()])
        first = largest(all_keys, num, np.zeros(len(all_keys)))
        first = first[all_keys[first] > -np.inf]
        own = first[first < len(keys)]
        found += list(zip(index[own].tolist(), score[own].tolist(), strict=True))
        taken_P[index[own]] = True
        rows = (first[first >= len(keys)] - len(keys)) // num
        found += self._take_untried(strata, untried_scores, rows, taken_P)
        if len(first) == num and len(found) < wanted:
            # Some of the untried are taken: go on with those that are left.
            left_S = self._beliefs.untried.num_S
            found += self._untried_by_score(capability, wanted - len(found), taken_P, left_S)
        return found

    def _scored_prompts(self, capability: int, num: int, taken_P: Mask) -> Found:
        """Take prompts with a likelihood in place of untried ones, until the map is tested."""
        assert self._candidates is not None
        if not self._uses_likelihoods or self._beliefs.likelihoods.is_tested(capability):
            return []
        evidence, index = self._beliefs.evidence, self._candidates.index_N
        new = evidence.passed_P[index] + evidence.failed_P[index] == 0
        new &= ~np.isnan(evidence.logprob_P[index]) & (evidence.failures_P[index] == 0)
        new &= (self._pool.capability_P[index] == capability) & ~taken_P[index]
        at = np.flatnonzero(new)
        recent = evidence.scored_P[index[at]].astype(np.float64)
        at = at[largest(recent, num, self._pool.rng.random(len(at)))]
        taken_P[index[at]] = True
        scores = self._candidates.score_N[at]
        return list(zip(index[at].tolist(), scores.tolist(), strict=True))

    def _untried_by_score(self, capability: int, num: int, taken_P: Mask, left_S: Ints) -> Found:
        """Sample untried prompts of a capability, of which each stratum has `left_S`."""
        strata = self._beliefs.strata_of(capability)
        scores = self._score_strata()[strata]
        noise = largest_gumbels(left_S[strata], num, self._pool.rng)
        keys = (self._log_weights(scores)[:, None] + noise).ravel()
        first = largest(keys, num, np.zeros(keys.size))
        first = first[keys[first] > -np.inf]
        return self._take_untried(strata, scores, first // max(num, 1), taken_P)

    def _take_untried(self, strata: Ints, scores: Floats, rows: Ints, taken_P: Mask) -> Found:
        """Take the next untried prompt of `strata[row]` for every row, and mark them as taken."""
        found: Found = []
        for row in np.unique(rows).tolist():
            new = self._beliefs.untried.first(int(strata[row]), int(np.sum(rows == row)), taken_P)
            taken_P[new] = True
            found += [(i, float(scores[row])) for i in new.tolist()]
        return found

    # The rest

    def _longest_unseen(self, capability: int, num: int, taken_P: Mask) -> Found:
        left = self._pool.free(capability, taken_P)
        age = -self._beliefs.evidence.proposed_P[left].astype(np.float64)
        found = left[largest(age, num, self._pool.rng.random(len(left)))]
        taken_P[found] = True
        return [(i, math.nan) for i in found.tolist()]

    def _stalest(self, capability: int, num: int) -> Ints:
        """Return prompts with the oldest likelihoods, among those neither solved nor waiting."""
        beliefs, pool = self._beliefs, self._pool
        evidence = beliefs.evidence
        before = beliefs.step - LIKELIHOOD_HALF_LIFE / 2
        index = evidence.known[pool.capability_P[evidence.known] == capability]
        index = index[~evidence.solved_P[index] & (evidence.due_P[index] <= beliefs.step)]
        index = index[(evidence.scored_P[index] < before) & ~np.isnan(evidence.logprob_P[index])]
        ages = -evidence.scored_P[index].astype(np.float64)
        return index[largest(ages, num, pool.rng.random(len(index)))].astype(np.int64)

    def _choices(self, found: Found, reason: Reason, capability: int) -> list[Choice]:
        shared = {
            "centre": float(self._beliefs.centre_C()[capability]),
            "share": self._pool.share(capability),
        }
        return [
            Choice(
                index=i,
                reason=reason,
                decision=shared if math.isnan(score) else {**shared, "score": score},
            )
            for i, score in found
        ]


def expected_signal(alpha: Floats, beta: Floats, num_generations: int) -> Floats:
    """Return the geometric mean of P(group is mixed) and 4 E[p (1 - p)], in [0, 1].

    The first is what a loss with advantages divided by their standard deviation learns from, the
    second what one without does.
    """
    mixed = mixed_probability(alpha, beta, num_generations)
    return np.sqrt(mixed * 4.0 * expected_variance(alpha, beta))


def largest_gumbels(num_variables: Ints, num_kept: int, rng: np.random.Generator) -> Floats:
    """Return (S, num_kept): the largest of each row's `num_variables` standard Gumbels, falling.

    Drawn as order statistics, such that a million prompts with one score cost as much as the few
    that can be chosen: the largest of N uniforms is U^(1/N), the next one that times U^(1/(N-1)),
    ... -inf past a row's number of variables.
    """
    left = num_variables[:, None] - np.arange(num_kept)[None, :]
    uniforms = rng.random(left.shape)
    with np.errstate(divide="ignore"):
        log_largest = np.cumsum(np.log(uniforms) / np.maximum(left, 1), axis=1)
        gumbels = -np.log(-log_largest)
    return np.where(left > 0, gumbels, -np.inf)
