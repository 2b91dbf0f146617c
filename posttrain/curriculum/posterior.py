"""What a Beta belief about a pass rate says about rollouts; closed forms, elementwise.

alpha and beta are the belief's parameters, above 0; all arguments broadcast.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_TINY = 1e-300


def group_signal(alpha: Floats, beta: Floats, num: int) -> Floats:
    """V_G: the chance that `num` rollouts neither all pass nor all fail.

    1 - B(alpha + G, beta) / B(alpha, beta) - B(alpha, beta + G) / B(alpha, beta), each ratio as the
    product of its G factors.
    """
    passed, failed = np.ones_like(alpha + beta), np.ones_like(alpha + beta)
    for j in range(num):
        passed = passed * (alpha + j) / (alpha + beta + j)
        failed = failed * (beta + j) / (alpha + beta + j)
    return np.maximum(1.0 - passed - failed, 0.0)


def expected_variance(alpha: Floats, beta: Floats) -> Floats:
    """E[p (1 - p)]: the mean size of one rollout's policy gradient on the prompt's own logit."""
    total = alpha + beta
    return alpha * beta / (total * (total + 1.0))


def signal_mean(alpha: Floats, beta: Floats) -> Floats:
    """The pass rate that signal comes from: the mean of p weighted by p (1 - p).

    Of a prompt that is either solved or out of reach the plain mean says nothing.
    """
    return (alpha + 1.0) / (alpha + beta + 2.0)


def expected_spread(
    alpha: Floats, beta: Floats, *, num_passed: Floats, num_decided: Floats, num_more: Floats
) -> Floats:
    """E[C (N - C) / N] of a group once `num_more` rollouts join c of n; N = n + num_more.

    C (N - C) / N is the group's sum of squared advantages without normalisation. Its moments are
    those of the Beta-binomial; `alpha`, `beta` is the belief after the c of n. 0 where N = 0.
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
    """Log-probability, in nats, of an ordered outcome with c passes in n rollouts."""
    nats = np.zeros(np.broadcast(alpha, num_decided).shape)
    for j in range(int(np.max(num_decided, initial=0))):
        passes, fails = j < num_passed, j < num_decided - num_passed
        nats += np.where(passes, np.log(np.maximum(alpha + j, _TINY)), 0.0)
        nats += np.where(fails, np.log(np.maximum(beta + j, _TINY)), 0.0)
        nats -= np.where(j < num_decided, np.log(alpha + beta + j), 0.0)
    return nats


def chance_above(rate: float, alpha: Floats, beta: Floats) -> Floats:
    """P(p > rate), 0 < rate < 1: one minus the regularised incomplete beta function.

    Lentz's continued fraction (Numerical Recipes, 6.4), on whichever side of the mean converges.
    """
    mirrored = rate >= (alpha + 1.0) / (alpha + beta + 2.0)
    a, b = np.where(mirrored, beta, alpha), np.where(mirrored, alpha, beta)
    x = np.where(mirrored, 1.0 - rate, rate)
    front = np.exp(a * np.log(x) + b * np.log1p(-x) - _log_beta(a, b)) / a
    lower = np.clip(front * _continued_fraction(a, b, x), 0.0, 1.0)
    return np.where(mirrored, lower, 1.0 - lower)


def _continued_fraction(a: Floats, b: Floats, x: Floats) -> Floats:
    c = np.ones_like(a)
    d = 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1.0))
    value = d
    for m in range(1, 200):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        for term in (even, odd):
            d = 1.0 / _away_from_zero(1.0 + term * d)
            c = _away_from_zero(1.0 + term / c)
            value = value * (c * d)
        if np.all(np.abs(c * d - 1.0) < 1e-12):
            break
    return value


def _away_from_zero(values: Floats) -> Floats:
    return np.where(np.abs(values) < _TINY, _TINY, values)


def _log_beta(a: Floats, b: Floats) -> Floats:
    return _log_gamma(a) + _log_gamma(b) - _log_gamma(a + b)


# Lanczos' coefficients for g = 7 (Godfrey), good to 15 digits above 0.
_LANCZOS = (
    676.5203681218851,
    -1259.1392167224028,
    771.32342877765313,
    -176.61502916214059,
    12.507343278686905,
    -0.13857109526572012,
    9.9843695780195716e-6,
    1.5056327351493116e-7,
)


def _log_gamma(x: Floats) -> Floats:
    # Through gamma(x) = gamma(x + 1) / x, as the series needs x >= 1/2.
    series = np.full_like(x, 0.99999999999980993)
    for i, coefficient in enumerate(_LANCZOS):
        series = series + coefficient / (x + i + 1.0)
    t = x + 7.5
    return 0.5 * np.log(2 * np.pi) + (x + 0.5) * np.log(t) - t + np.log(series) - np.log(x)
