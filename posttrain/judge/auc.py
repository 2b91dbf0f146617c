"""How surely good answers score above bad ones: the area under the ROC curve and its interval."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_NUM_BOOTSTRAPS = 1_000
_TAIL = 0.025


def auc(good: Floats, bad: Floats) -> float:
    """Probability that a good answer scores above a bad one: Mann and Whitney's U over the pairs.

    Ties count half.
    """
    ordered = np.sort(bad)
    below = np.searchsorted(ordered, good, side="left")
    up_to = np.searchsorted(ordered, good, side="right")
    return float(np.mean((below + up_to) / 2) / len(bad))


def auc_interval(good: Floats, bad: Floats, *, seed: int = 0) -> tuple[float, float]:
    """Both ends of the 95 % interval of the AUC, each the wider of two.

    A percentile bootstrap over good and bad answers apart knows how either sort is spread, but
    resamples of scores that divide them (nearly) cleanly say certain. `score_end` does not, and
    knows only how many there are.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = [
        auc(rng.choice(good, len(good)), rng.choice(bad, len(bad))) for _ in range(_NUM_BOOTSTRAPS)
    ]
    low, high = np.quantile(drawn, [_TAIL, 1.0 - _TAIL])
    found, counts = auc(good, bad), (len(good), len(bad))
    return (
        min(float(low), score_end(found, *counts)),
        max(float(high), 1.0 - score_end(1.0 - found, *counts)),
    )


def score_end(found: float, num_good: int, num_bad: int) -> float:
    """The AUC from which `found` lies just significantly above, at 2.5 %.

    Newcombe (2006, Statistics in Medicine 25, method 5): the normal test with the variance that
    Hanley and McNeil (1982) give the AUC under test, here with half a step of U, 1 / (2 m n), for
    continuity. At one half the variance is Mann and Whitney's own.
    """
    z = NormalDist().inv_cdf(1.0 - _TAIL)
    num_pairs, mean_count = num_good * num_bad, (num_good + num_bad) / 2.0

    def is_far_below(a: float) -> bool:
        spread = 1.0 + (mean_count - 1.0) * ((1.0 - a) / (2.0 - a) + a / (1.0 + a))
        error = math.sqrt(a * (1.0 - a) / num_pairs * spread)
        return found - a - 0.5 / num_pairs > z * error

    low, high = 0.0, found
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (middle, high) if is_far_below(middle) else (low, middle)
    return low
