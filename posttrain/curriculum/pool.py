"""The prompts there are, by capability, and a batch divided among the capabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.curriculum.protocol import Proposal, Reason
from posttrain.curriculum.quotas import Quotas, shares_of
from posttrain.records import Prompt

Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One prompt of the pool, by its index, and why."""

    index: int
    reason: Reason
    num_pilot: int | None = None
    decision: dict[str, float] = field(default_factory=dict[str, float])


Choose = Callable[[int, int, Mask], list[Choice]]
"""(capability's number, how many, taken_P) -> so many prompts that are not taken, or all of them
that are left; what it chooses it marks in taken_P."""


class Pool:
    """The prompts, the quotas and the random numbers; a prompt is known by its index."""

    def __init__(
        self, prompts: Sequence[Prompt], *, quotas: Mapping[str, float] | None, seed: int
    ) -> None:
        shares = shares_of(quotas, [prompt.capability for prompt in prompts])
        self.capabilities = list(shares)
        self.prompt_ids: list[str] = []
        self.capability_P = np.zeros(0, dtype=np.int16)
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self._quotas = Quotas(shares)
        self._shares = [float(share) for share in shares.values()]
        self._append(prompts, allow_without_quota=True)

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Append `prompts`; ValueError where one is known or its capability has no quota."""
        self._append(prompts, allow_without_quota=False)

    def index(self, prompt_id: str) -> int:
        """The index of one prompt; ValueError for a stranger."""
        found = int(self.indices([prompt_id])[0])
        if found < 0:
            raise ValueError(f"prompt {prompt_id} is not in this curriculum's pool")
        return found

    def indices(self, prompt_ids: Iterable[str]) -> Indices:
        """(N,) indices; -1 for strangers."""
        wanted = _keys(list(prompt_ids))
        if not len(self) or not len(wanted):
            return np.full(len(wanted), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self) - 1)
        return np.where(self._sorted[at] == wanted, self._order[at], -1).astype(np.int64)

    def share(self, capability: int) -> float:
        """Its part of every batch."""
        return self._shares[capability]

    def members(self, capability: int) -> Indices:
        """Indices of the prompts of a capability."""
        return np.flatnonzero(self.capability_P == capability)

    def draw(
        self, num_prompts: int, choose: Choose, *, exclude: Set[str], capability: str | None
    ) -> list[Proposal]:
        """Up to `num_prompts` distinct proposals in random order, chosen per capability.

        A capability that runs dry leaves its places to those with most prompts left; they are not
        owed to it later.
        """
        if num_prompts < 0:
            raise ValueError(f"num_prompts must be 0 or more, not {num_prompts}")
        taken_P = self.capability_P < 0
        known = self.indices(exclude)
        taken_P[known[known >= 0]] = True
        if capability is None:
            wanted = self._quotas.divide(num_prompts)
        elif capability in self.capabilities:
            wanted = {capability: num_prompts}
        else:
            raise ValueError(
                f"capability {capability!r} has no quota; there are {', '.join(self.capabilities)}"
            )
        chosen: list[Choice] = []
        for c, name in enumerate(self.capabilities):
            if wanted.get(name):
                chosen += choose(c, wanted[name], taken_P)
        if capability is None and len(chosen) < num_prompts:
            left_C = np.bincount(self.capability_P[~taken_P], minlength=len(self.capabilities))
            for c, num in enumerate(from_the_richest(left_C, num_prompts - len(chosen)).tolist()):
                if num:
                    chosen += choose(c, num, taken_P)
        order: list[int] = self.rng.permutation(len(chosen)).tolist()
        return [self._proposal(chosen[i]) for i in order]

    def _proposal(self, choice: Choice) -> Proposal:
        return Proposal(
            prompt_id=self.prompt_ids[choice.index],
            capability=self.capabilities[int(self.capability_P[choice.index])],
            reason=choice.reason,
            num_pilot=choice.num_pilot,
            decision=choice.decision,
        )

    def _append(self, prompts: Sequence[Prompt], *, allow_without_quota: bool) -> None:
        numbers = {name: c for c, name in enumerate(self.capabilities)}
        strange = sorted({p.capability for p in prompts} - set(numbers))
        if strange and not allow_without_quota:
            raise ValueError(
                f"capability {strange[0]!r} has no quota; there are {', '.join(numbers)}"
            )
        ids = self.prompt_ids + [prompt.prompt_id for prompt in prompts]
        keys = _keys(ids)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise ValueError(
                f"{len(twice)} prompts are in the pool twice, {twice[0].decode()} among them: "
                "give each once"
            )
        self.prompt_ids = ids
        self._sorted, self._order = ordered, order.astype(np.int32)
        new = [numbers.get(prompt.capability, -1) for prompt in prompts]
        self.capability_P = np.append(self.capability_P, np.array(new, dtype=np.int16))

    def state_dict(self) -> dict[str, Any]:
        """Which prompts these are, the quotas, the random numbers."""
        return {
            "prompt_ids": self._sorted,
            "order": self._order,
            "quotas": self._quotas.state_dict(),
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; ValueError that names the difference where it is of other prompts."""
        saved = np.asarray(state["prompt_ids"])
        if not np.array_equal(saved, self._sorted):
            raise ValueError(
                "the saved curriculum belongs to another set of prompts: "
                f"{_difference(saved, self._sorted)}"
            )
        if not np.array_equal(state["order"], self._order):
            raise ValueError(
                "the saved curriculum belongs to another set of prompts: the same ones in another "
                "order"
            )
        self._quotas.load_state_dict(state["quotas"])
        self.rng.bit_generator.state = state["rng"]


def from_the_richest(left_C: Indices, num: int) -> Indices:
    """(C,) how many of `num` each gives, so that those with most left end level.

    >>> from_the_richest(np.array([9, 4, 0]), 7).tolist()
    [6, 1, 0]
    """
    num = min(num, int(left_C.sum()))
    given_C = np.zeros_like(left_C)
    order = np.argsort(-left_C, kind="stable")
    for k in range(1, len(order) + 1):
        richest = order[:k]
        level, more = divmod(int(left_C[richest].sum()) - num, k)
        if k == len(order) or level >= left_C[order[k]]:
            given_C[richest] = left_C[richest] - level
            given_C[richest[:more]] -= 1
            break
    return given_C


def check_kind(state: Mapping[str, Any], kind: str) -> None:
    """ValueError where `state` was saved by a curriculum of another kind."""
    saved = state.get("kind")
    if saved != kind:
        raise ValueError(f"the saved curriculum is of kind {saved}, this one is {kind}")


def _keys(prompt_ids: Sequence[str]) -> npt.NDArray[np.bytes_]:
    return np.array([prompt_id.encode() for prompt_id in prompt_ids], dtype=np.bytes_)


def _difference(saved: npt.NDArray[np.bytes_], here: npt.NDArray[np.bytes_]) -> str:
    gone, new = np.setdiff1d(saved, here), np.setdiff1d(here, saved)
    told: list[str] = []
    if len(gone):
        told.append(f"{len(gone)} of its prompts are not in this pool ({gone[0].decode()} first)")
    if len(new):
        told.append(f"{len(new)} prompts of this pool are new to it ({new[0].decode()} first)")
    return " and ".join(told)
