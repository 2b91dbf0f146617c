"""The curriculum seam: propose, observe, save, restore."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Protocol

from posttrain.records import RolloutGroup


class Curriculum(Protocol):
    """Chooses prompts from what the policy did with earlier ones."""

    def propose(
        self, num_prompts: int, *, exclude: Set[str] = frozenset(), capability: str | None = None
    ) -> list[str]:
        """Distinct prompt_ids in random order; fewer than asked only where the pool is smaller.

        Without `capability` every capability gets its quota of the batch; with it, all come from
        that one (a refill). `exclude` names prompts that must not come.
        """
        ...

    def observe(self, group: RolloutGroup) -> None:
        """Learn from one scored group."""
        ...

    def metrics(self) -> dict[str, float]:
        """What the curriculum believes, named curriculum/..."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything the future depends on, as JSON values, random numbers included."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state` was taken; ValueError where it belongs to other prompts."""
        ...
