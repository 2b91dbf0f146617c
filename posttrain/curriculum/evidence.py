"""What a prompt's own rollouts and likelihood have shown, and when it may come again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from posttrain.curriculum.inbox import Visits
from posttrain.curriculum.pool import Indices
from posttrain.curriculum.posterior import Ints

_MAX_WAIT = 512
"""Steps that an unsolved prompt waits at most."""

_FIELDS = {
    "passed": np.float32,
    "failed": np.float32,
    "proposed": np.int32,
    "due": np.int32,
    "failures": np.uint8,
    "solved": np.bool_,
    "logprob": np.float32,
    "probed": np.int32,
    "mute": np.bool_,
}


class Evidence:
    """Discounted counts, waiting times and likelihoods; one array each over the pool."""

    def __init__(self, num_prompts: int) -> None:
        self.passed_P = np.zeros(num_prompts, dtype=np.float32)
        self.failed_P = np.zeros(num_prompts, dtype=np.float32)
        self.proposed_P = np.zeros(num_prompts, dtype=np.int32)
        """Number of the proposal it last came in; 0 = never."""
        self.due_P = np.zeros(num_prompts, dtype=np.int32)
        """Step from which an unsolved prompt may come again."""
        self.failures_P = np.zeros(num_prompts, dtype=np.uint8)
        """Visits in a row without a pass, or without anything that could be decided."""
        self.solved_P = np.zeros(num_prompts, dtype=np.bool_)
        self.logprob_P = np.full(num_prompts, np.nan, dtype=np.float32)
        self.probed_P = np.zeros(num_prompts, dtype=np.int32)
        """Step of the likelihood."""
        self.mute_P = np.zeros(num_prompts, dtype=np.bool_)
        """Whether there is no likelihood to be had."""
        self.known = np.zeros(0, dtype=np.int32)
        """Indices of the prompts with counts or a likelihood, in the order they became known."""
        self._clock = 0

    def tick(self) -> int:
        """The number of the proposal at hand, from 1."""
        self._clock += 1
        return self._clock

    def grow(self, num_new: int) -> None:
        """Make room for prompts that were added to the pool."""
        fresh = Evidence(num_new)
        for name in _FIELDS:
            joined = np.append(getattr(self, f"{name}_P"), getattr(fresh, f"{name}_P"))
            setattr(self, f"{name}_P", joined)

    def meet(self, indices: Indices) -> None:
        """These become known; each once, and none that is known already."""
        self.known = np.append(self.known, indices.astype(np.int32))

    def count(self, visits: Visits, *, discount: float, backoff: int) -> None:
        """Add a step's counts, older ones discounted; who never passed waits, longer each time."""
        i, c = visits.index_N, visits.num_passed_N
        self.passed_P[i] = discount * self.passed_P[i] + c
        self.failed_P[i] = discount * self.failed_P[i] + (visits.num_decided_N - c)
        failures = np.where(c == 0, np.minimum(self.failures_P[i], 30) + 1, 0)
        self._wait(i, failures, step=visits.step, backoff=backoff)

    def defer(self, indices: Indices, *, step: int, backoff: int) -> None:
        """Nothing could be decided of these: they wait as who never passed does."""
        failures = np.minimum(self.failures_P[indices], 30) + 1
        self._wait(indices, failures, step=step, backoff=backoff)

    def _wait(self, indices: Indices, failures: Ints, *, step: int, backoff: int) -> None:
        self.failures_P[indices] = failures
        wait = np.minimum(backoff * 2.0 ** np.maximum(failures - 1.0, 0.0), _MAX_WAIT)
        self.due_P[indices] = np.where(failures > 0, step + wait, 0)

    def state_dict(self) -> dict[str, Any]:
        """All arrays."""
        arrays = {name: getattr(self, f"{name}_P").copy() for name in _FIELDS}
        return {"arrays": arrays, "known": self.known.copy(), "clock": self._clock}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        for name, dtype in _FIELDS.items():
            setattr(self, f"{name}_P", np.array(state["arrays"][name], dtype=dtype))
        self.known = np.array(state["known"], dtype=np.int32)
        self._clock = int(state["clock"])
