"""Repeated measurements: taken in turns, told by their median and their extremes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """The middle and the extremes of one figure's measurements.

    >>> spread_of([3.0, 1.0, 2.0])
    Spread(median=2.0, low=1.0, high=3.0, num_runs=3)
    """

    median: float
    low: float
    high: float
    num_runs: int


def spread_of(values: Sequence[float]) -> Spread:
    """Summarise at least one measurement."""
    return Spread(
        median=statistics.median(values), low=min(values), high=max(values), num_runs=len(values)
    )


def take_turns(
    contenders: Mapping[str, Callable[[int], T]], *, num_rounds: int, num_warmups: int = 1
) -> dict[str, list[T]]:
    """Call every contender once a round with the round's number, each time another one first.

    Turns share out what drifts (caches, heat, neighbours), so one round's measurements may be
    compared with each other. Warm-up rounds have negative numbers and are not kept.
    """
    names = list(contenders)
    taken: dict[str, list[T]] = {name: [] for name in names}
    for number in range(-num_warmups, num_rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            result = contenders[name](number)
            if number >= 0:
                taken[name].append(result)
    return taken
