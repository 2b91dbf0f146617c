"""From beliefs to a batch: the score of a prompt, and sampling by score without replacement."""

from __future__ import annotations

import numpy as np

from posttrain.curriculum.posterior import (
    Floats,
    Ints,
    expected_variance,
    group_signal,
    signal_mean,
)


def expected_signal(alpha: Floats, beta: Floats, num_generations: int) -> Floats:
    """In [0, 1]: the geometric mean of V_G and 4 E[p (1 - p)].

    The first is what a loss with advantages divided by their standard deviation learns from, the
    second what one without does.
    """
    return np.sqrt(
        group_signal(alpha, beta, num_generations) * 4.0 * expected_variance(alpha, beta)
    )


def band(alpha: Floats, beta: Floats, *, centre: Floats | float, width: float) -> Floats:
    """In (0, 1]: how near to `centre` the pass rates are that the signal would come from."""
    return np.exp(-0.5 * ((signal_mean(alpha, beta) - centre) / width) ** 2)


def gumbel_top(log_weights: Floats, num: int, rng: np.random.Generator) -> Ints:
    """Indices of `num` draws without replacement in proportion to exp(log_weights), best first.

    The Gumbel-top-k trick (Kool et al. 2019, arXiv 1903.06059). Draws past those with a weight are
    in random order.
    """
    keys = log_weights + rng.gumbel(size=len(log_weights))
    return top(keys, num, rng.random(len(keys)))


def top(keys: Floats, num: int, ties: Floats) -> Ints:
    """Indices of the `num` largest, best first; equal ones by `ties`."""
    if num < len(keys):
        edge = np.partition(keys, len(keys) - num)[len(keys) - num] if num else np.inf
        near = np.flatnonzero(keys >= edge)
    else:
        near = np.arange(len(keys))
    return near[np.lexsort((ties[near], -keys[near]))][:num].astype(np.int64)


def largest_gumbels(num_variables: Ints, num_kept: int, rng: np.random.Generator) -> Floats:
    """(S, num_kept): of each row's `num_variables` standard Gumbels the largest, falling.

    Drawn as order statistics, so that a million prompts with one score cost as much as the few that
    can be chosen: the largest of N uniforms is U^(1/N), the next one that times U^(1/(N-1)), ...
    -inf past a row's number of variables.
    """
    left = num_variables[:, None] - np.arange(num_kept)[None, :]
    uniforms = rng.random(left.shape)
    with np.errstate(divide="ignore"):
        log_largest = np.cumsum(np.log(uniforms) / np.maximum(left, 1), axis=1)
        gumbels = -np.log(-log_largest)
    return np.where(left > 0, gumbels, -np.inf)
