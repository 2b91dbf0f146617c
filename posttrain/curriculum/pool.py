"""The prompts by capability, and every batch divided among the capabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from posttrain.curriculum.arrays import Bytes, Floats, Ints, Mask, np
from posttrain.curriculum.protocol import Proposal, Reason
from posttrain.errors import RecipeError
from posttrain.records import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One prompt of the pool, by its index, and why it was chosen."""

    index: int
    reason: Reason
    decision: dict[str, float] = field(default_factory=dict[str, float])


Choose = Callable[[int, int, Mask], list[Choice]]
"""(capability's number, num_prompts, taken_P) -> that many prompts that are not taken yet, or all
that are left; it marks its choices in taken_P."""


class Pool:
    """The prompts, the quotas and the random numbers; a prompt is known by its index."""

    def __init__(
        self, prompts: Sequence[Prompt], *, quotas: Mapping[str, float] | None, seed: int
    ) -> None:
        shares = shares_of(quotas, [prompt.capability for prompt in prompts])
        self.capabilities = list(shares)
        self.prompt_ids: list[str] = []
        self.capability_P = np.zeros(0, dtype=np.int16)
        """Number of each prompt's capability; -1 if that has no quota."""
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self._quotas = Quotas(shares)
        self._shares = [float(share) for share in shares.values()]
        self._append(prompts, allow_without_quota=True)

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Append `prompts`; ValueError if one is known or its capability has no quota."""
        self._append(prompts, allow_without_quota=False)

    def index(self, prompt_id: str) -> int:
        """Return the index of one prompt; ValueError if it is not in the pool."""
        found = int(self.indices([prompt_id])[0])
        if found < 0:
            raise ValueError(f"prompt {prompt_id} is not in this curriculum's pool")
        return found

    def indices(self, prompt_ids: Iterable[str]) -> Ints:
        """Return (N,) indices, -1 for prompts that are not in the pool."""
        wanted = _keys(list(prompt_ids))
        if not len(self) or not len(wanted):
            return np.full(len(wanted), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self) - 1)
        return np.where(self._sorted[at] == wanted, self._order[at], -1).astype(np.int64)

    def share(self, capability: int) -> float:
        """Return a capability's share of every batch."""
        return self._shares[capability]

    def members(self, capability: int) -> Ints:
        """Return the indices of a capability's prompts."""
        return np.flatnonzero(self.capability_P == capability)

    def free(self, capability: int, taken_P: Mask) -> Ints:
        """Return the indices of a capability's prompts that are not taken."""
        members = self.members(capability)
        return members[~taken_P[members]]

    def draw(
        self, num_prompts: int, choose: Choose, *, exclude: Set[str], capability: str | None
    ) -> list[Proposal]:
        """Return up to `num_prompts` distinct proposals in random order, chosen per capability.

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
            for c, num in enumerate(take_from_richest(left_C, num_prompts - len(chosen)).tolist()):
                if num:
                    chosen += choose(c, num, taken_P)
        order: list[int] = self.rng.permutation(len(chosen)).tolist()
        return [
            Proposal(
                prompt_id=self.prompt_ids[choice.index],
                capability=self.capabilities[int(self.capability_P[choice.index])],
                reason=choice.reason,
                decision=choice.decision,
            )
            for choice in (chosen[i] for i in order)
        ]

    def _append(self, prompts: Sequence[Prompt], *, allow_without_quota: bool) -> None:
        numbers = {name: c for c, name in enumerate(self.capabilities)}
        unknown = sorted({p.capability for p in prompts} - set(numbers))
        if unknown and not allow_without_quota:
            raise ValueError(
                f"capability {unknown[0]!r} has no quota; there are {', '.join(numbers)}"
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
        """Return which prompts these are, the quotas and the random numbers."""
        return {
            "prompt_ids": self._sorted,
            "order": self._order,
            "quotas": self._quotas.state_dict(),
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; ValueError that names the difference if the prompts differ."""
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


def check_kind(state: Mapping[str, Any], kind: str) -> None:
    """Raise ValueError if `state` was saved by a curriculum of another kind."""
    saved = state.get("kind")
    if saved != kind:
        raise ValueError(f"the saved curriculum is of kind {saved}, this one is {kind}")


def take_from_richest(left_C: Ints, num: int) -> Ints:
    """Return (C,) how many of `num` each gives, such that those with most left end level.

    >>> take_from_richest(np.array([9, 4, 0]), 7).tolist()
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


def _keys(prompt_ids: Sequence[str]) -> Bytes:
    return np.array([prompt_id.encode() for prompt_id in prompt_ids], dtype=np.bytes_)


def _difference(saved: Bytes, here: Bytes) -> str:
    gone, new = np.setdiff1d(saved, here), np.setdiff1d(here, saved)
    parts: list[str] = []
    if len(gone):
        parts.append(f"{len(gone)} of its prompts are not in this pool ({gone[0].decode()} first)")
    if len(new):
        parts.append(f"{len(new)} prompts of this pool are new to it ({new[0].decode()} first)")
    return " and ".join(parts)


# Quotas


class Quotas:
    """Divides batches by largest remainders, exactly in the long run."""

    def __init__(self, shares: Mapping[str, Fraction]) -> None:
        assert sum(shares.values()) == 1
        self._shares = dict(sorted(shares.items()))
        self._total = 0
        self._given = dict.fromkeys(self._shares, 0)

    def divide(self, num_prompts: int) -> dict[str, int]:
        """Return whole numbers per capability that sum to `num_prompts`.

        Each capability's total stays within one of its exact share of all that was ever divided,
        except where that would take back what it already got.
        """
        self._total += num_prompts
        owed = {c: share * self._total - self._given[c] for c, share in self._shares.items()}
        parts = {c: max(0, owed[c].__floor__()) for c in owed}
        for _ in range(num_prompts - sum(parts.values())):
            parts[max(parts, key=lambda c: owed[c] - parts[c])] += 1
        for _ in range(sum(parts.values()) - num_prompts):
            parts[min((c for c in parts if parts[c]), key=lambda c: owed[c] - parts[c])] -= 1
        for c, part in parts.items():
            self._given[c] += part
        return parts

    def state_dict(self) -> dict[str, Any]:
        """Return the totals so far."""
        return {"total": self._total, "given": dict(self._given)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        if set(state["given"]) != set(self._given):
            raise ValueError(
                f"the saved curriculum divides among {sorted(state['given'])}, this one among "
                f"{sorted(self._given)}"
            )
        self._total = int(state["total"])
        self._given = {c: int(state["given"][c]) for c in self._shares}


def shares_of(
    quotas: Mapping[str, float] | None, capabilities: Sequence[str]
) -> dict[str, Fraction]:
    """Return exact shares that sum to 1 over the capabilities with a share above zero.

    Equal shares without `quotas`.
    """
    present = sorted(set(capabilities))
    if not present:
        raise RecipeError("rl.data has no prompts", hint="check rl.data's size and filters")
    if quotas is None:
        return dict.fromkeys(present, Fraction(1, len(present)))
    if unknown := sorted(set(quotas) - set(present)):
        raise RecipeError(
            f"curriculum quotas name {', '.join(unknown)}, but rl.data has {', '.join(present)}",
            hint="name capabilities of rl.data under quotas",
        )
    if missing := sorted(set(present) - set(quotas)):
        raise RecipeError(
            f"curriculum quotas lack {', '.join(missing)}",
            hint="give every capability of rl.data a share; 0 leaves it out",
        )
    # Through the decimal text, so that 0.1 means a tenth and not its nearest binary fraction.
    weights = {c: Fraction(repr(quotas[c])) for c in present}
    whole = sum(weights.values(), Fraction(0))
    if not whole:
        raise RecipeError("curriculum quotas are all 0", hint="give a capability a share above 0")
    return {c: weight / whole for c, weight in weights.items() if weight}


# Sampling without replacement


def gumbel_top(log_weights: Floats, num: int, rng: np.random.Generator) -> Ints:
    """Return indices of `num` draws without replacement, in proportion to exp(log_weights).

    The Gumbel-top-k trick (Kool et al. 2019, arXiv 1903.06059), best first. Draws past those with
    a weight are in random order.
    """
    keys = log_weights + rng.gumbel(size=len(log_weights))
    return largest(keys, num, rng.random(len(keys)))


def largest(keys: Floats, num: int, ties: Floats) -> Ints:
    """Return the indices of the `num` largest keys, best first; equal ones by `ties`."""
    if num < len(keys):
        edge = np.partition(keys, len(keys) - num)[len(keys) - num] if num else np.inf
        near = np.flatnonzero(keys >= edge)
    else:
        near = np.arange(len(keys))
    return near[np.lexsort((ties[near], -keys[near]))][:num].astype(np.int64)
