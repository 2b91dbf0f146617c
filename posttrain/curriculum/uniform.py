"""Every prompt alike, in whole groups: the control, and what the simpler curricula start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from posttrain.curriculum.history import History
from posttrain.curriculum.inbox import Visits
from posttrain.curriculum.pool import Choice, Indices, Mask, Pool, check_kind
from posttrain.curriculum.protocol import Proposal
from posttrain.recipe.curricula import BaselineCurriculum
from posttrain.records import Prompt, RolloutGroup


class Uniform:
    """Goes through each capability's prompts in random order, all of them before any a second time.

    What it observes changes its metrics only. The simpler curricula are this one with another
    choice.
    """

    def __init__(self, spec: BaselineCurriculum, prompts: Sequence[Prompt], *, seed: int) -> None:
        self._kind = spec.kind
        self._pool = Pool(prompts, quotas=spec.quotas, seed=seed)
        self._history = History(self._pool)

    def _choose(self, capability: int, num_prompts: int, taken_P: Mask) -> list[Choice]:
        """See pool.Choose."""
        chosen = self._longest_unseen(self._free(capability, taken_P), num_prompts)
        taken_P[chosen] = True
        return [Choice(index=i, reason="selected") for i in chosen.tolist()]

    def _learn(self, visits: Visits) -> None:
        """Learn from one step's counts, which are in the history already."""

    def _grow(self) -> None:
        """Make room for prompts that were added."""

    def _own_state(self) -> dict[str, Any]:
        return {}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        pass

    def propose(
        self,
        num_prompts: int,
        *,
        num_generations: int,
        exclude: Set[str] = frozenset(),
        capability: str | None = None,
    ) -> list[Proposal]:
        """See Curriculum.propose."""
        for visits in self._history.settle():
            self._learn(visits)
        clock = self._history.tick()
        proposals = self._pool.draw(
            num_prompts, self._choose, exclude=exclude, capability=capability
        )
        chosen = self._pool.indices([p.prompt_id for p in proposals])
        self._history.proposed_P[chosen] = clock
        return proposals

    def continues(self, prompt_id: str, *, num_passed: int, num_decided: int) -> bool:
        """Groups are drawn whole."""
        return True

    def observe(self, group: RolloutGroup) -> None:
        """See Curriculum.observe."""
        self._history.put(group)

    def to_probe(self, num_prompts: int) -> list[str]:
        """No likelihood is used."""
        return []

    def observe_likelihood(self, logprobs: Mapping[str, float | None], *, step: int) -> None:
        """No likelihood is used."""

    def add(self, prompts: Sequence[Prompt]) -> None:
        """See Curriculum.add."""
        self._pool.add(prompts)
        self._history.grow()
        self._grow()

    def metrics(self) -> dict[str, float]:
        """Per capability: share of prompts seen, mean pass rate; as of the last proposal."""
        return self._history.metrics()

    def state_dict(self) -> dict[str, Any]:
        """See Curriculum.state_dict."""
        return {
            "kind": self._kind,
            "pool": self._pool.state_dict(),
            "history": self._history.state_dict(),
            **self._own_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Curriculum.load_state_dict."""
        check_kind(state, self._kind)
        self._pool.load_state_dict(state["pool"])
        self._history.load_state_dict(state["history"])
        self._load_own_state(state)

    def _free(self, capability: int, taken_P: Mask) -> Indices:
        members = self._pool.members(capability)
        return members[~taken_P[members]]

    def _longest_unseen(self, candidates: Indices, num_prompts: int) -> Indices:
        """Those proposed longest ago, or never; ties by chance."""
        if num_prompts >= len(candidates):
            return candidates
        keys = self._history.proposed_P[candidates] + self._pool.rng.random(len(candidates))
        return candidates[np.argpartition(keys, num_prompts)[:num_prompts]]
