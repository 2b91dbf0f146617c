"""Beta beliefs about a pass rate: what they predict of rollouts, and how the predictions fared.

All functions are elementwise closed forms. `alpha` and `beta`, above 0, are the belief's
parameters; arguments broadcast. scipy is imported where it is used, as `posttrain check` imports
this package for the specs alone.
"""

# scipy brings no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.curriculum.arrays import Floats, Ints, np

PILOT_SIZES = (2, 3, 4, 6)
# A pilot must promise a tenth more signal per rollout than the whole group at once.
_MIN_GAIN = 1.1
_NUM_BINS = 10


# One group


def mixed_probability(alpha: Floats, beta: Floats, num: int) -> Floats:
    """Return the probability that `num` rollouts neither all pass nor all fail.

    V_G = 1 - B(alpha + G, beta) / B(alpha, beta) - B(alpha, beta + G) / B(alpha, beta), each ratio
    as the product of its G factors.
    """
    passed, failed = np.ones_like(alpha + beta), np.ones_like(alpha + beta)
    for j in range(num):
        passed = passed * (alpha + j) / (alpha + beta + j)
        failed = failed * (beta + j) / (alpha + beta + j)
    return np.maximum(1.0 - passed - failed, 0.0)


def expected_variance(alpha: Floats, beta: Floats) -> Floats:
    """Return E[p (1 - p)], the mean gradient of one rollout on the prompt's own logit."""
    total = alpha + beta
    return alpha * beta / (total * (total + 1.0))


def signal_pass_rate(alpha: Floats, beta: Floats) -> Floats:
    """Return the mean of p weighted by p (1 - p): the pass rate that signal would come from.

    The plain mean says nothing of a prompt that is either solved or out of reach.
    """
    return (alpha + 1.0) / (alpha + beta + 2.0)


def expected_squared_advantages(
    alpha: Floats, beta: Floats, *, num_passed: Floats, num_decided: Floats, num_more: Floats
) -> Floats:
    """Return E[C (N - C) / N] of a group once `num_more` rollouts join c of n; N = n + num_more.

    C (N - C) / N is the group's sum of squared advantages without normalisation. Its moments are
    those of the Beta-binomial; `alpha`, `beta` is the belief after the c of n. 0 if N = 0.
    """
    total = num_decided + num_more
    mean = alpha / (alpha + beta)
    new_mean = num_more * mean
    new_square = num_more * expected_variance(alpha, beta) + num_more**2 * (
        alpha * (alpha + 1.0) / ((alpha + beta) * (alpha + beta + 1.0))
    )
    mean_passed = num_passed + new_mean
    mean_square = num_passed**2 + 2.0 * num_passed * new_mean + new_square
    return (total * mean_passed - mean_square) / np.maximum(total, 1.0)


def log_predictive(alpha: Floats, beta: Floats, num_passed: Ints, num_decided: Ints) -> Floats:
    """Return the log-probability, in nats, of an ordered outcome with c passes in n rollouts."""
    from scipy.special import betaln

    after = betaln(alpha + num_passed, beta + (num_decided - num_passed))
    return np.asarray(after - betaln(alpha, beta), dtype=np.float64)


def probability_above(rate: float, alpha: Floats, beta: Floats) -> Floats:
    """Return P(p > rate), 0 < rate < 1."""
    from scipy.special import betaincc

    return np.asarray(betaincc(alpha, beta, rate), dtype=np.float64)


# Pilots


def best_pilot(alpha: Floats, beta: Floats, num_generations: int) -> tuple[Ints, Floats]:
    """Return the pilot size with most expected signal per expected rollout, and its rollouts.

    Signal is E[C (N - C) / N]; a pilot of n that comes out mixed is drawn to the end, one that does
    not is stopped. A whole group at once (num_generations) where no pilot gains a tenth.
    """
    zero = np.zeros_like(alpha)
    whole = expected_squared_advantages(
        alpha, beta, num_passed=zero, num_decided=zero, num_more=zero + num_generations
    )
    best = np.full(alpha.shape, num_generations, dtype=np.int64)
    best_ratio = whole / num_generations
    best_cost = zero + num_generations
    bar = best_ratio * _MIN_GAIN
    for num in PILOT_SIZES:
        if num >= num_generations:
            continue
        more = zero + (num_generations - num)
        all_passed, all_failed = np.ones_like(alpha), np.ones_like(alpha)
        for j in range(num):
            all_passed = all_passed * (alpha + j) / (alpha + beta + j)
            all_failed = all_failed * (beta + j) / (alpha + beta + j)
        lost = all_passed * expected_squared_advantages(
            alpha + num, beta, num_passed=zero + num, num_decided=zero + num, num_more=more
        ) + all_failed * expected_squared_advantages(
            alpha, beta + num, num_passed=zero, num_decided=zero + num, num_more=more
        )
        cost = num + (1.0 - all_passed - all_failed) * (num_generations - num)
        ratio = (whole - lost) / cost
        better = ratio > np.maximum(best_ratio, bar)
        best = np.where(better, num, best)
        best_ratio = np.where(better, ratio, best_ratio)
        best_cost = np.where(better, cost, best_cost)
    return best, best_cost


def signal_per_remaining_rollout(
    alpha: float, beta: float, *, num_passed: int, num_decided: int, num_more: int
) -> float:
    """Return the expected signal per rollout of drawing `num_more` after a pilot of c in n.

    `alpha`, `beta` is the belief before the pilot.
    """
    after = expected_squared_advantages(
        np.array([alpha + num_passed]),
        np.array([beta + num_decided - num_passed]),
        num_passed=np.array([float(num_passed)]),
        num_decided=np.array([float(num_decided)]),
        num_more=np.array([float(num_more)]),
    )
    now = num_passed * (num_decided - num_passed) / num_decided if num_decided else 0.0
    return (float(after[0]) - now) / num_more


# The posterior as the advantage's baseline


def posterior_advantages(
    passed_G: Floats, *, alpha: float, beta: float, scale: bool = True
) -> Floats:
    """Return (G,) advantages of binary outcomes against the discounted posterior.

    `alpha`, `beta` is the belief before the group. The group is counted in, then
    A = (r - m) / sqrt(m (1 - m)) with m the posterior's mean, without the division unless `scale`:
    the discounted Beta-Bernoulli baseline (arXiv 2603.18444). Biased, with less variance than the
    group's own mean; a group that all passed or all failed still teaches, in proportion to the
    surprise. NaN outcomes (undecided) have advantage 0 and are not counted.
    """
    decided = ~np.isnan(passed_G)
    mean = (alpha + np.sum(passed_G[decided])) / (alpha + beta + np.sum(decided))
    return np.where(decided, passed_G - mean, 0.0) / (
        np.sqrt(mean * (1.0 - mean)) if scale else 1.0
    )


def leave_one_out_advantages(
    passed_G: Floats, *, alpha: float, beta: float, scale: bool = True
) -> Floats:
    """Return (G,) advantages, each against the posterior of belief and all *other* rollouts.

    Unbiased, as no rollout's own outcome is in its baseline (posterior-predictive advantage). With
    alpha = beta = 0 and without scale it is RLOO's.
    """
    decided = ~np.isnan(passed_G)
    known = np.where(decided, passed_G, 0.0)
    passed = alpha + np.sum(known) - known
    total = alpha + beta + np.sum(decided) - decided
    if np.any(decided & (total <= 0)):
        raise ValueError("one rollout has no others to be compared with: give a belief above 0")
    mean = passed / np.where(decided, total, 1.0)
    whole = (alpha + np.sum(known)) / (alpha + beta + max(int(np.sum(decided)), 1))
    deviation = np.sqrt(max(whole * (1.0 - whole), 1e-6)) if scale else 1.0
    return np.where(decided, known - mean, 0.0) / deviation


# How predictions fared


class Calibration:
    """Sums over all predicted groups: reliability by bin, Brier score, log-loss."""

    def __init__(self) -> None:
        self.predicted_B = np.zeros(_NUM_BINS)
        self.observed_B = np.zeros(_NUM_BINS)
        self.num_B = np.zeros(_NUM_BINS)
        self._brier, self._nats, self._num_rollouts = 0.0, 0.0, 0.0

    def observe(self, alpha: Floats, beta: Floats, num_passed: Ints, num_decided: Ints) -> None:
        """Compare beliefs with the rollouts that followed."""
        predicted = alpha / (alpha + beta)
        bins = np.minimum((predicted * _NUM_BINS).astype(np.int64), _NUM_BINS - 1)
        np.add.at(self.predicted_B, bins, predicted * num_decided)
        np.add.at(self.observed_B, bins, num_passed.astype(float))
        np.add.at(self.num_B, bins, num_decided.astype(float))
        failed = num_decided - num_passed
        self._brier += float(np.sum(num_passed * (1 - predicted) ** 2 + failed * predicted**2))
        self._nats -= float(np.sum(log_predictive(alpha, beta, num_passed, num_decided)))
        self._num_rollouts += float(num_decided.sum())

    def metrics(self) -> dict[str, float]:
        """Return Brier score, log-loss in nats per rollout, expected calibration error.

        NaN before any prediction.
        """
        n = self._num_rollouts
        if not n:
            return dict.fromkeys(("brier", "log_loss", "error"), float("nan"))
        return {
            "brier": self._brier / n,
            "log_loss": self._nats / n,
            "error": float(np.abs(self.predicted_B - self.observed_B).sum() / n),
        }

    def reliability(self) -> list[tuple[float, float, int]]:
        """Return (mean predicted, observed pass rate, rollouts) of each bin that was used."""
        return [
            (float(p / n), float(o / n), int(n))
            for p, o, n in zip(self.predicted_B, self.observed_B, self.num_B, strict=True)
            if n
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return all sums."""
        return {
            "predicted": self.predicted_B.copy(),
            "observed": self.observed_B.copy(),
            "num": self.num_B.copy(),
            "sums": [self._brier, self._nats, self._num_rollouts],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.predicted_B = np.array(state["predicted"])
        self.observed_B = np.array(state["observed"])
        self.num_B = np.array(state["num"])
        self._brier, self._nats, self._num_rollouts = state["sums"]
