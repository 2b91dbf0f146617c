"""Dividing batches among capabilities so that the shares come out exactly in the long run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from posttrain.errors import RecipeError


class Quotas:
    """A running largest-remainder division: what rounding took comes back later."""

    def __init__(self, shares: Mapping[str, Fraction]) -> None:
        assert sum(shares.values()) == 1
        self._shares = dict(sorted(shares.items()))
        self._total = 0
        self._given = dict.fromkeys(self._shares, 0)

    def divide(self, num_prompts: int) -> dict[str, int]:
        """Whole numbers per capability that sum to `num_prompts`.

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
        """The totals so far."""
        return {"total": self._total, "given": dict(self._given)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
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
    """Exact shares that sum to 1, over the capabilities with a share above zero; equal without
    `quotas`.
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
    weights = {c: _weight(c, quotas[c]) for c in present}
    whole = sum(weights.values(), Fraction(0))
    if not whole:
        raise RecipeError("curriculum quotas are all 0", hint="give a capability a share above 0")
    return {c: weight / whole for c, weight in weights.items() if weight}


def _weight(capability: str, value: float) -> Fraction:
    if not 0 <= value < float("inf"):
        raise RecipeError(
            f"curriculum quotas.{capability}: {value} is no share",
            hint="give a number of 0 or more",
        )
    return Fraction(repr(value))
