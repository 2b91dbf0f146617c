"""Isotonic regression: the monotone values nearest to what was measured."""

from __future__ import annotations

from posttrain.curriculum.posterior import Floats


def isotonic(values: Floats, weights: Floats, *, increasing: bool = True) -> Floats:
    """The monotone sequence with the least weighted squared distance from `values`.

    Pool adjacent violators (Barlow et al. 1972). Weights must be above 0.
    """
    assert len(values) == len(weights)
    if not increasing:
        return -isotonic(-values, weights)
    means: list[float] = []
    masses: list[float] = []
    sizes: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, mass, size = value, weight, 1
        while means and means[-1] >= mean:
            last, heavy = means.pop(), masses.pop()
            mean = (last * heavy + mean * mass) / (heavy + mass)
            mass += heavy
            size += sizes.pop()
        means.append(mean)
        masses.append(mass)
        sizes.append(size)
    pooled = values.copy()
    start = 0
    for mean, size in zip(means, sizes, strict=True):
        pooled[start : start + size] = mean
        start += size
    return pooled
