"""The posterior as the advantage's baseline, in place of the group's own mean and deviation."""

from __future__ import annotations

import numpy as np

from posttrain.curriculum.posterior import Floats


def posterior_advantages(
    passed_G: Floats, *, alpha: float, beta: float, scale: bool = True
) -> Floats:
    """(G,) advantages of binary outcomes against the discounted posterior.

    `alpha`, `beta` is the belief before the group. The group is counted in, then
    A = (r - m) / sqrt(m (1 - m)) with m the posterior's mean, without the division where not
    `scale`: the discounted Beta-Bernoulli baseline (arXiv 2603.18444). Biased, with less variance
    than the group's own mean; a group that is all right or all wrong still teaches, in proportion
    to the surprise. NaN outcomes (undecided) have advantage 0 and are not counted.
    """
    decided = ~np.isnan(passed_G)
    mean = (alpha + np.sum(passed_G[decided])) / (alpha + beta + np.sum(decided))
    return np.where(decided, passed_G - mean, 0.0) / (
        np.sqrt(mean * (1.0 - mean)) if scale else 1.0
    )


def leave_one_out_advantages(
    passed_G: Floats, *, alpha: float, beta: float, scale: bool = True
) -> Floats:
    """(G,) the same, each rollout against the posterior of belief and all *other* rollouts.

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
