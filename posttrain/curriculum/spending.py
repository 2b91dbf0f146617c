"""How many rollouts a prompt gets before one looks, and whether the rest is worth drawing."""

from __future__ import annotations

import numpy as np

from posttrain.curriculum.posterior import Floats, Ints, expected_spread

PILOTS = (2, 3, 4, 6)
_MIN_GAIN = 1.1


def best_pilot(alpha: Floats, beta: Floats, num_generations: int) -> tuple[Ints, Floats]:
    """The pilot with most expected signal per expected rollout, and its expected rollouts.

    Signal is E[C (N - C) / N]; a pilot of n that comes out mixed is drawn to the end, one that does
    not is stopped. A whole group at once (num_generations) where no pilot gains a tenth.
    """
    zero = np.zeros_like(alpha)
    whole = expected_spread(
        alpha, beta, num_passed=zero, num_decided=zero, num_more=zero + num_generations
    )
    best = np.full(alpha.shape, num_generations, dtype=np.int64)
    best_ratio = whole / num_generations
    best_cost = zero + num_generations
    bar = best_ratio * _MIN_GAIN
    for num in PILOTS:
        if num >= num_generations:
            continue
        more = zero + (num_generations - num)
        all_passed, all_failed = np.ones_like(alpha), np.ones_like(alpha)
        for j in range(num):
            all_passed = all_passed * (alpha + j) / (alpha + beta + j)
            all_failed = all_failed * (beta + j) / (alpha + beta + j)
        lost = all_passed * expected_spread(
            alpha + num, beta, num_passed=zero + num, num_decided=zero + num, num_more=more
        ) + all_failed * expected_spread(
            alpha, beta + num, num_passed=zero, num_decided=zero + num, num_more=more
        )
        cost = num + (1.0 - all_passed - all_failed) * (num_generations - num)
        ratio = (whole - lost) / cost
        better = ratio > np.maximum(best_ratio, bar)
        best = np.where(better, num, best)
        best_ratio = np.where(better, ratio, best_ratio)
        best_cost = np.where(better, cost, best_cost)
    return best, best_cost


def gain_of_rest(
    alpha: float, beta: float, *, num_passed: int, num_decided: int, num_more: int
) -> float:
    """Expected signal per rollout of drawing `num_more`, given what was believed and the pilot."""
    after = expected_spread(
        np.array([alpha + num_passed]),
        np.array([beta + num_decided - num_passed]),
        num_passed=np.array([float(num_passed)]),
        num_decided=np.array([float(num_decided)]),
        num_more=np.array([float(num_more)]),
    )
    now = num_passed * (num_decided - num_passed) / num_decided if num_decided else 0.0
    return (float(after[0]) - now) / num_more
