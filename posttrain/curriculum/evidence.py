"""Each prompt's own rollouts and likelihood, and the prompts that have none yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.curriculum.arrays import Floats, Ints, Mask, np
from posttrain.curriculum.beta import log_predictive
from posttrain.curriculum.counts import StepCounts

DISCOUNTS = (0.3, 0.5, 0.7, 0.9, 1.0)
"""Candidate weights left to a prompt's older groups at each new one."""
# Prompts followed under every discount, the first to be visited.
_NUM_FOLLOWED = 4096
# Weight left at each revisit step to the discounts' losses so far.
_LOSS_KEPT = 0.995
# Revisits before a discount is chosen by its loss.
_MIN_REVISITS = 32
# Steps that an unsolved prompt waits at most.
_MAX_WAIT = 512

# Attribute (one array over the pool) -> its name in a saved state, its dtype.
_FIELDS: Mapping[str, tuple[str, str]] = {
    "passed_P": ("passed", "float32"),
    "failed_P": ("failed", "float32"),
    "proposed_P": ("proposed", "int32"),
    "due_P": ("due", "int32"),
    "failures_P": ("failures", "uint8"),
    "solved_P": ("solved", "bool"),
    "logprob_P": ("logprob", "float32"),
    "scored_P": ("probed", "int32"),
    "unscorable_P": ("mute", "bool"),
}


class Evidence:
    """Discounted counts, waiting times and likelihoods; one array each over the pool."""

    def __init__(self, num_prompts: int) -> None:
        self.passed_P = np.zeros(num_prompts, dtype=np.float32)
        self.failed_P = np.zeros(num_prompts, dtype=np.float32)
        self.proposed_P = np.zeros(num_prompts, dtype=np.int32)
        """Number of the proposal it last came in; 0 = never."""
        self.due_P = np.zeros(num_prompts, dtype=np.int32)
        """Step from which an unsolved prompt may come again."""
        self.failures_P = np.zeros(num_prompts, dtype=np.uint8)
        """Visits in a row without a pass, or without anything that could be decided."""
        self.solved_P = np.zeros(num_prompts, dtype=np.bool_)
        self.logprob_P = np.full(num_prompts, np.nan, dtype=np.float32)
        """Log-likelihood of the reference answer; NaN if it was not scored."""
        self.scored_P = np.zeros(num_prompts, dtype=np.int32)
        """Step of the likelihood."""
        self.unscorable_P = np.zeros(num_prompts, dtype=np.bool_)
        """Prompts without an answer whose likelihood could be scored."""
        self.known = np.zeros(0, dtype=np.int32)
        """Indices of the prompts with counts or a likelihood, in the order they became known."""
        self._clock = 0

    def mark_proposed(self, indices: Ints) -> None:
        """Remember that these prompts came in one more proposal."""
        self._clock += 1
        self.proposed_P[indices] = self._clock

    def grow(self, num_new: int) -> None:
        """Make room for prompts that were added to the pool."""
        fresh = Evidence(num_new)
        for name in _FIELDS:
            setattr(self, name, np.append(getattr(self, name), getattr(fresh, name)))

    def add_known(self, indices: Ints) -> None:
        """Append to `known`; each index once, and none that is known already."""
        self.known = np.append(self.known, indices.astype(np.int32))

    def count(self, counts: StepCounts, *, discount: float, backoff: int) -> None:
        """Add a step's counts, older ones discounted; a prompt without a pass waits."""
        i, c = counts.index_N, counts.num_passed_N
        self.passed_P[i] = discount * self.passed_P[i] + c
        self.failed_P[i] = discount * self.failed_P[i] + (counts.num_decided_N - c)
        failures = np.where(c == 0, np.minimum(self.failures_P[i], 30) + 1, 0)
        self._wait(i, failures, step=counts.step, backoff=backoff)

    def defer(self, indices: Ints, *, step: int, backoff: int) -> None:
        """Let prompts whose rollouts could not be decided wait as unsolved ones do."""
        failures = np.minimum(self.failures_P[indices], 30) + 1
        self._wait(indices, failures, step=step, backoff=backoff)

    def _wait(self, indices: Ints, failures: Ints, *, step: int, backoff: int) -> None:
        """Set when prompts are due again: after `backoff` steps, doubled with each failure."""
        self.failures_P[indices] = failures
        wait = np.minimum(backoff * 2.0 ** np.maximum(failures - 1.0, 0.0), _MAX_WAIT)
        self.due_P[indices] = np.where(failures > 0, step + wait, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return all arrays."""
        arrays = {saved_as: getattr(self, name).copy() for name, (saved_as, _) in _FIELDS.items()}
        return {"arrays": arrays, "known": self.known.copy(), "clock": self._clock}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        for name, (saved_as, dtype) in _FIELDS.items():
            setattr(self, name, np.array(state["arrays"][saved_as], dtype=dtype))
        self.known = np.array(state["known"], dtype=np.int32)
        self._clock = int(state["clock"])


class DiscountChoice:
    """Chooses how fast evidence about a prompt grows old, by what predicts its revisits best.

    It keeps the counts of the first prompts to be visited under every discount at once; a
    discount's loss is the decayed sum of one-step predictive log-losses. The choice holds for all
    prompts.
    """

    def __init__(self) -> None:
        self._row_of: dict[int, int] = {}
        self._passed_RD = np.zeros((0, len(DISCOUNTS)))
        self._failed_RD = np.zeros((0, len(DISCOUNTS)))
        self._nats_D = np.zeros(len(DISCOUNTS))
        self._num_revisits = 0

    @property
    def best(self) -> float:
        """Return the discount with the least loss; one half before enough revisits."""
        if self._num_revisits < _MIN_REVISITS:
            return 0.5
        return DISCOUNTS[int(np.argmin(self._nats_D))]

    def observe(self, counts: StepCounts, alpha_N: Floats, beta_N: Floats) -> None:
        """Score and update; `alpha_N`, `beta_N` are the priors, without the prompt's own counts."""
        rows: list[int] = []
        at: list[int] = []
        for n, index in enumerate(counts.index_N.tolist()):
            row = self._row_of.get(index)
            if row is None:
                if len(self._row_of) == _NUM_FOLLOWED:
                    continue
                row = self._row_of[index] = len(self._row_of)
            rows.append(row)
            at.append(n)
        new = np.zeros((len(self._row_of) - len(self._passed_RD), len(DISCOUNTS)))
        self._passed_RD = np.concatenate([self._passed_RD, new])
        self._failed_RD = np.concatenate([self._failed_RD, new])
        if not rows:
            return
        passed_M, failed_M = self._passed_RD[rows], self._failed_RD[rows]
        c = counts.num_passed_N[at][:, None]
        n = counts.num_decided_N[at][:, None]
        again = (passed_M + failed_M).sum(axis=1) > 0
        nats = log_predictive(alpha_N[at][:, None] + passed_M, beta_N[at][:, None] + failed_M, c, n)
        self._nats_D = _LOSS_KEPT * self._nats_D - nats[again].sum(axis=0)
        self._num_revisits += int(again.sum())
        kept_D = np.array(DISCOUNTS)
        self._passed_RD[rows] = kept_D * passed_M + c
        self._failed_RD[rows] = kept_D * failed_M + (n - c)

    def state_dict(self) -> dict[str, Any]:
        """Return the followed prompts' counts and the losses."""
        return {
            "followed": np.array(list(self._row_of), dtype=np.int64),
            "passed": self._passed_RD.copy(),
            "failed": self._failed_RD.copy(),
            "nats": self._nats_D.copy(),
            "num_revisits": self._num_revisits,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        followed: list[int] = np.asarray(state["followed"]).tolist()
        self._row_of = {index: row for row, index in enumerate(followed)}
        self._passed_RD, self._failed_RD = np.array(state["passed"]), np.array(state["failed"])
        self._nats_D = np.array(state["nats"])
        self._num_revisits = int(state["num_revisits"])


class Untried:
    """Prompts known by their stratum alone, in a random order per stratum that is drawn once.

    They are interchangeable within a stratum, so that a count per stratum is enough to choose.
    """

    def __init__(self, strata_P: Ints, *, rng: np.random.Generator) -> None:
        self.stratum_P = strata_P.astype(np.int32)
        self.is_untried_P = np.ones(len(strata_P), dtype=np.bool_)
        self._ticket_P = rng.random(len(strata_P), dtype=np.float32)
        self._sort()

    @property
    def num_S(self) -> Ints:
        """Return (S,) the number of prompts that each stratum has left."""
        return self._num_S

    def grow(self, strata: Ints, *, rng: np.random.Generator) -> None:
        """Add new prompts, each at a random place of its stratum's order."""
        self.stratum_P = np.append(self.stratum_P, strata.astype(np.int32))
        self.is_untried_P = np.append(self.is_untried_P, np.ones(len(strata), dtype=np.bool_))
        self._ticket_P = np.append(self._ticket_P, rng.random(len(strata), dtype=np.float32))
        self._sort()

    def remove(self, indices: Ints) -> None:
        """Take prompts out that became known; each index once."""
        fresh = indices[self.is_untried_P[indices]]
        self.is_untried_P[fresh] = False
        np.subtract.at(self._num_S, self.stratum_P[fresh], 1)

    def first(self, stratum: int, num: int, taken_P: Mask) -> Ints:
        """Return the next `num` of a stratum that are not taken; fewer if it has fewer."""
        start, end = int(self._cursor_S[stratum]), int(self._end_S[stratum])
        found = np.zeros(0, dtype=np.int64)
        at, width = start, 2 * num + 64
        while at < end and len(found) < num:
            part = self._order[at : min(at + width, end)]
            untried = self.is_untried_P[part]
            if at == start and not untried.any():
                # None of these will ever be untried again.
                start = min(at + width, end)
                self._cursor_S[stratum] = start
            found = np.append(found, part[untried & ~taken_P[part]])
            at, width = at + width, 2 * width if at > start else width
        return found[:num]

    def _sort(self) -> None:
        self._order = np.lexsort((self._ticket_P, self.stratum_P)).astype(np.int32)
        num = int(self.stratum_P.max(initial=-1)) + 1
        self.size_S = np.bincount(self.stratum_P, minlength=num)
        self._num_S = np.bincount(self.stratum_P[self.is_untried_P], minlength=num)
        self._end_S = np.cumsum(self.size_S)
        self._cursor_S = self._end_S - self.size_S

    def state_dict(self) -> dict[str, Any]:
        """Return which prompts are untried, and the order."""
        return {"ticket": self._ticket_P.copy(), "untried": np.packbits(self.is_untried_P)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        num = len(self.stratum_P)
        self._ticket_P = np.array(state["ticket"], dtype=np.float32)
        self.is_untried_P = np.unpackbits(state["untried"], count=num).astype(np.bool_)
        self._sort()
