"""What each prompt's groups showed, as the simpler curricula remember it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.curriculum.inbox import Inbox, Visits
from posttrain.curriculum.pool import Pool
from posttrain.records import RolloutGroup


class History:
    """Per prompt: when it was last proposed, all its counts, and the latest group's pass rate."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._inbox = Inbox()
        self._clock = 0
        self.proposed_P = np.zeros(len(pool), dtype=np.int32)
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

    def tick(self) -> int:
        """The number of the proposal at hand, from 1."""
        self._clock += 1
        return self._clock

    def put(self, group: RolloutGroup) -> None:
        """Keep a group's counts until `settle`; where nothing was decided there are none."""
        if not group.num_decided:
            return
        self._inbox.put(
            step=group.step,
            index=self._pool.index(group.prompt_id),
            num_passed=group.num_passed,
            num_decided=group.num_decided,
        )

    def settle(self) -> Sequence[Visits]:
        """Count what was put, and return it, the oldest step first."""
        settled = list(self._inbox.take())
        for visits in settled:
            self.num_passed_P[visits.index_N] += visits.num_passed_N
            self.num_decided_P[visits.index_N] += visits.num_decided_N
            self.latest_P[visits.index_N] = visits.num_passed_N / visits.num_decided_N
        return settled

    def metrics(self) -> dict[str, float]:
        """Per capability: share of prompts seen, mean pass rate of all that was decided."""
        told: dict[str, float] = {}
        for c, name in enumerate(self._pool.capabilities):
            members = self._pool.capability_P == c
            decided = int(self.num_decided_P[members].sum())
            told[f"curriculum/{name}/seen"] = float(np.mean(self.num_decided_P[members] > 0))
            told[f"curriculum/{name}/pass_rate"] = (
                float(self.num_passed_P[members].sum() / decided) if decided else float("nan")
            )
        return told

    def state_dict(self) -> dict[str, Any]:
        """Counts, clocks and what is not settled yet."""
        return {
            "clock": self._clock,
            "proposed": self.proposed_P.copy(),
            "num_passed": self.num_passed_P.copy(),
            "num_decided": self.num_decided_P.copy(),
            "latest": self.latest_P.copy(),
            "inbox": self._inbox.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._clock = int(state["clock"])
        self.proposed_P = np.array(state["proposed"], dtype=np.int32)
        self.num_passed_P = np.array(state["num_passed"], dtype=np.int64)
        self.num_decided_P = np.array(state["num_decided"], dtype=np.int64)
        self.latest_P = np.array(state["latest"], dtype=np.float64)
        self._inbox.load_state_dict(state["inbox"])
