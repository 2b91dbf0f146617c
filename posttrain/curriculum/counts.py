"""Scored groups on their way into a curriculum: outcomes counted by step and by prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.curriculum.arrays import Ints, np
from posttrain.curriculum.pool import Pool
from posttrain.records import RolloutGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCounts:
    """The outcomes of one step, each prompt once, by rising index."""

    step: int
    index_N: Ints
    num_passed_N: Ints
    num_decided_N: Ints
    """Numbers of decided rollouts, each above 0."""
    undecided_U: Ints
    """Indices of the prompts without any decided rollout."""


class Inbox:
    """Collects scored groups; hands them out by step and prompt, whatever order they came in."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, int]] = []

    def put(self, step: int, index: int, num_passed: int, num_decided: int) -> None:
        """Keep one group's counts."""
        self._rows.append((step, index, num_passed, num_decided))

    def take(self) -> Iterator[StepCounts]:
        """Empty it, the oldest step first; groups of one prompt and step are counted as one."""
        rows = np.array(sorted(self._rows), dtype=np.int64).reshape(-1, 4)
        self._rows = []
        for step in np.unique(rows[:, 0]).tolist():
            part = rows[rows[:, 0] == step]
            index_N, inverse = np.unique(part[:, 1], return_inverse=True)
            passed_N, decided_N = np.zeros_like(index_N), np.zeros_like(index_N)
            np.add.at(passed_N, inverse, part[:, 2])
            np.add.at(decided_N, inverse, part[:, 3])
            decided = decided_N > 0
            yield StepCounts(
                step=step,
                index_N=index_N[decided],
                num_passed_N=passed_N[decided],
                num_decided_N=decided_N[decided],
                undecided_U=index_N[~decided],
            )

    def state_dict(self) -> list[list[int]]:
        """Return the rows, sorted."""
        return [list(row) for row in sorted(self._rows)]

    def load_state_dict(self, state: Sequence[Sequence[int]]) -> None:
        """Continue from `state`."""
        self._rows = [(step, index, passed, decided) for step, index, passed, decided in state]


class History:
    """Per prompt: when it was last proposed, all its outcomes, and the latest group's pass rate."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._inbox = Inbox()
        self._clock = 0
        self.proposed_P = np.zeros(len(pool), dtype=np.int32)
        """Number of the proposal it last came in; 0 = never."""
        self.num_passed_P = np.zeros(len(pool), dtype=np.int64)
        self.num_decided_P = np.zeros(len(pool), dtype=np.int64)
        self.latest_P = np.full(len(pool), np.nan)

    def grow(self) -> None:
        """Make room for prompts that were added to the pool."""
        new = len(self._pool) - len(self.latest_P)
        self.proposed_P = np.append(self.proposed_P, np.zeros(new, dtype=np.int32))
        self.num_passed_P = np.append(self.num_passed_P, np.zeros(new, dtype=np.int64))
        self.num_decided_P = np.append(self.num_decided_P, np.zeros(new, dtype=np.int64))
        self.latest_P = np.append(self.latest_P, np.full(new, np.nan))

    def mark_proposed(self, indices: Ints) -> None:
        """Remember that these prompts came in one more proposal."""
        self._clock += 1
        self.proposed_P[indices] = self._clock

    def put(self, group: RolloutGroup) -> None:
        """Keep a group's outcomes until `settle`; an undecided group has none."""
        index = self._pool.index(group.prompt_id)
        if group.num_decided:
            self._inbox.put(group.step, index, group.num_passed, group.num_decided)

    def settle(self) -> list[StepCounts]:
        """Count what was put, and return it, the oldest step first."""
        settled = list(self._inbox.take())
        for counts in settled:
            self.num_passed_P[counts.index_N] += counts.num_passed_N
            self.num_decided_P[counts.index_N] += counts.num_decided_N
            self.latest_P[counts.index_N] = counts.num_passed_N / counts.num_decided_N
        return settled

    def metrics(self) -> dict[str, float]:
        """Return each capability's share of prompts seen and pass rate of all decided rollouts."""
        found: dict[str, float] = {}
        for c, name in enumerate(self._pool.capabilities):
            members = self._pool.capability_P == c
            decided = int(self.num_decided_P[members].sum())
            found[f"curriculum/{name}/seen"] = float(np.mean(self.num_decided_P[members] > 0))
            found[f"curriculum/{name}/pass_rate"] = (
                float(self.num_passed_P[members].sum() / decided) if decided else float("nan")
            )
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return outcomes, clocks and what is not settled yet."""
        return {
            "clock": self._clock,
            "proposed": self.proposed_P.copy(),
            "num_passed": self.num_passed_P.copy(),
            "num_decided": self.num_decided_P.copy(),
            "latest": self.latest_P.copy(),
            "inbox": self._inbox.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._clock = int(state["clock"])
        self.proposed_P = np.array(state["proposed"], dtype=np.int32)
        self.num_passed_P = np.array(state["num_passed"], dtype=np.int64)
        self.num_decided_P = np.array(state["num_decided"], dtype=np.int64)
        self.latest_P = np.array(state["latest"], dtype=np.float64)
        self._inbox.load_state_dict(state["inbox"])
