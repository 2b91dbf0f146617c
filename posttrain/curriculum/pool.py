"""Drawing prompts from the pool: quotas, no repeats in a batch, the longest unseen first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.curriculum.protocol import Proposal
from posttrain.curriculum.quotas import Quotas, shares_of
from posttrain.records import Prompt, content_hash

Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Pool:
    """The prompts, when each was last proposed, the quotas and the random numbers."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        quotas: Mapping[str, float] | None,
        explore: float,
        seed: int,
    ) -> None:
        shares = shares_of(quotas, [prompt.capability for prompt in prompts])
        self.prompt_ids = [prompt.prompt_id for prompt in prompts]
        self._capabilities = [prompt.capability for prompt in prompts]
        self._index = {prompt_id: i for i, prompt_id in enumerate(self.prompt_ids)}
        if len(self._index) != len(prompts):
            raise ValueError(
                f"{len(prompts) - len(self._index)} prompts are in the pool twice: give each once"
            )
        self.members: dict[str, Indices] = {
            c: np.array([i for i, p in enumerate(prompts) if p.capability == c], dtype=np.int64)
            for c in shares
        }
        self._quotas = Quotas(shares)
        self._explore = Fraction(repr(float(explore)))
        self._num_drawn = dict.fromkeys(shares, 0)
        self._num_explored = dict.fromkeys(shares, 0)
        self._clock = 0
        self._last_P = np.zeros(len(prompts), dtype=np.int64)
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Append `prompts`; their capabilities must have a quota."""
        ids = [prompt.prompt_id for prompt in prompts]
        if known := sorted(set(ids) & set(self._index)):
            raise ValueError(f"prompt {known[0]} is in the pool already")
        for prompt in prompts:
            if prompt.capability not in self.members:
                raise ValueError(f"capability {prompt.capability!r} has no quota")
            i = len(self.prompt_ids)
            self._index[prompt.prompt_id] = i
            self.prompt_ids.append(prompt.prompt_id)
            self._capabilities.append(prompt.capability)
            self.members[prompt.capability] = np.append(self.members[prompt.capability], i)
        self._last_P = np.append(self._last_P, np.zeros(len(prompts), dtype=np.int64))

    def draw(
        self, num_prompts: int, preferred_P: Mask, *, exclude: Set[str], capability: str | None
    ) -> list[Proposal]:
        """Up to `num_prompts` distinct prompts, `preferred_P` first but for the explored share."""
        self._explored_last: list[int] = []
        if num_prompts < 0:
            raise ValueError(f"num_prompts must be 0 or more, not {num_prompts}")
        free_P = np.ones(len(self.prompt_ids), dtype=np.bool_)
        free_P[[self._index[i] for i in exclude if i in self._index]] = False
        if capability is None:
            chosen = self._draw_by_quota(num_prompts, preferred_P, free_P)
        elif capability in self.members:
            chosen = self._draw_one(capability, num_prompts, preferred_P, free_P)
        else:
            raise ValueError(
                f"capability {capability!r} has no quota; there are {', '.join(self.members)}"
            )
        self._clock += 1
        self._last_P[chosen] = self._clock
        explored = set(self._explored_last)
        order: list[int] = self._rng.permutation(np.array(chosen, dtype=np.int64)).tolist()
        return [
            Proposal(
                prompt_id=self.prompt_ids[i],
                capability=self._capabilities[i],
                reason="explored" if i in explored else "selected" if preferred_P[i] else "filled",
            )
            for i in order
        ]

    def _draw_by_quota(self, num_prompts: int, preferred_P: Mask, free_P: Mask) -> list[int]:
        chosen: list[int] = []
        for capability, part in self._quotas.divide(num_prompts).items():
            chosen += self._draw_one(capability, part, preferred_P, free_P)
        # A capability that ran dry leaves its places to those with most prompts left; it is not
        # owed later.
        while len(chosen) < num_prompts:
            left = {c: int(free_P[members].sum()) for c, members in self.members.items()}
            richest = max(left, key=lambda c: left[c])
            if not left[richest]:
                break
            chosen += self._draw_one(richest, 1, preferred_P, free_P)
        return chosen

    def _draw_one(
        self, capability: str, num_prompts: int, preferred_P: Mask, free_P: Mask
    ) -> list[int]:
        """Draw from one capability and mark what was drawn as no longer free."""
        members = self.members[capability]
        candidates = members[free_P[members]]
        num_prompts = min(num_prompts, len(candidates))
        if not num_prompts:
            return []
        self._num_drawn[capability] += num_prompts
        owed = self._explore * self._num_drawn[capability] - self._num_explored[capability]
        num_explored = min(num_prompts, owed.__floor__())
        self._num_explored[capability] += num_explored

        chance = self._rng.random(len(candidates))
        last = self._last_P[candidates]
        explored = candidates[np.lexsort((chance, last))[:num_explored]]
        rank = np.lexsort((chance, last, ~preferred_P[candidates]))
        ranked = candidates[rank]
        exploited = ranked[~np.isin(ranked, explored)][: num_prompts - num_explored]
        self._explored_last += explored.tolist()
        chosen = np.concatenate([explored, exploited])
        free_P[chosen] = False
        return chosen.tolist()

    def state_dict(self) -> dict[str, Any]:
        """Random numbers, clocks and quotas; every value an int or a string."""
        return {
            "pool": content_hash(self.prompt_ids),
            "clock": self._clock,
            "last": {
                self.prompt_ids[i]: int(self._last_P[i])
                for i in np.flatnonzero(self._last_P).tolist()
            },
            "num_drawn": dict(self._num_drawn),
            "num_explored": dict(self._num_explored),
            "quotas": self._quotas.state_dict(),
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; ValueError where it belongs to other prompts."""
        if state["pool"] != content_hash(self.prompt_ids):
            raise ValueError("the saved curriculum belongs to another set of prompts")
        self._quotas.load_state_dict(state["quotas"])
        self._clock = int(state["clock"])
        self._last_P[:] = 0
        for prompt_id, last in state["last"].items():
            self._last_P[self._index[prompt_id]] = last
        self._num_drawn = {c: int(state["num_drawn"][c]) for c in self.members}
        self._num_explored = {c: int(state["num_explored"][c]) for c in self.members}
        self._rng.bit_generator.state = state["rng"]
