"""Scored groups on their way into the estimates: the order they came in does not matter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.curriculum.posterior import Ints


@dataclass(frozen=True, kw_only=True, slots=True)
class Visits:
    """The counts of one step, each prompt once, by rising index."""

    step: int
    index_N: Ints
    num_passed_N: Ints
    num_decided_N: Ints
    """Above 0."""
    undecided_U: Ints
    """Indices of the other prompts that came: nothing of them was decided."""


class Inbox:
    """Collects counts; gives them out by step and prompt, so that no rank's timing shows."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, int]] = []

    def put(self, *, step: int, index: int, num_passed: int, num_decided: int) -> None:
        """Keep one group's counts."""
        self._rows.append((step, index, num_passed, num_decided))

    def take(self) -> Iterator[Visits]:
        """Empty it, the oldest step first; groups of one prompt and step are counted as one."""
        rows = np.array(sorted(self._rows), dtype=np.int64).reshape(-1, 4)
        self._rows = []
        for step in np.unique(rows[:, 0]).tolist():
            part = rows[rows[:, 0] == step]
            index_N, inverse = np.unique(part[:, 1], return_inverse=True)
            passed_N, decided_N = np.zeros_like(index_N), np.zeros_like(index_N)
            np.add.at(passed_N, inverse, part[:, 2])
            np.add.at(decided_N, inverse, part[:, 3])
            told = decided_N > 0
            yield Visits(
                step=step,
                index_N=index_N[told],
                num_passed_N=passed_N[told],
                num_decided_N=decided_N[told],
                undecided_U=index_N[~told],
            )

    def state_dict(self) -> list[list[int]]:
        """The rows, sorted."""
        return [list(row) for row in sorted(self._rows)]

    def load_state_dict(self, state: Sequence[Sequence[int]]) -> None:
        """Go on from `state`."""
        self._rows = [(step, index, passed, decided) for step, index, passed, decided in state]
