"""The curriculum seam: propose, continue, observe, probe, save, restore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from posttrain.records import Prompt, RolloutGroup

Reason = Literal["selected", "explored", "reviewed", "retried", "filled"]
"""Why a prompt was chosen: by its score; without looking; to see whether it is still solved; to see
whether it is still unsolved; because nothing better was left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """One prompt to generate for, and why.

    >>> Proposal(prompt_id="p1", capability="math", reason="explored", num_pilot=4).num_pilot
    4
    """

    prompt_id: str
    capability: str
    reason: Reason
    num_pilot: int | None = None
    """Rollouts to draw before `continues` is asked; None = the whole group at once."""
    decision: Mapping[str, float] = field(default_factory=dict[str, float])
    """What it was decided on: alpha, beta, score, centre, quota, ...; for people to read."""


class Curriculum(Protocol):
    """Chooses prompts from what the policy did with earlier ones.

    Equal seeds and equal calls give equal proposals; the order of `observe` calls between two
    proposals does not matter.
    """

    def propose(
        self,
        num_prompts: int,
        *,
        num_generations: int,
        exclude: Set[str] = frozenset(),
        capability: str | None = None,
    ) -> list[Proposal]:
        """Distinct prompts in random order; fewer than asked only where the pool is smaller.

        Without `capability` every capability gets its quota of the batch; with it, all come from
        that one (a refill). `exclude` names prompts that must not come, such as those in flight.
        `num_generations` is the size of a whole group.
        """
        ...

    def continues(self, prompt_id: str, *, num_passed: int, num_decided: int) -> bool:
        """Whether the rest of a group is worth drawing, given its pilot's outcomes."""
        ...

    def observe(self, group: RolloutGroup) -> None:
        """Learn from one scored group, whole or stopped after its pilot."""
        ...

    def to_probe(self, num_prompts: int) -> list[str]:
        """Up to `num_prompts` prompts whose likelihood is wanted now; none where it is no use."""
        ...

    def observe_likelihood(self, logprobs: Mapping[str, float | None], *, step: int) -> None:
        """Learn from prompt_id -> log-probability, in nats, of reference answer and end token.

        None where there is no such text: that prompt is not asked about again.
        """
        ...

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Put new prompts into the pool."""
        ...

    def metrics(self) -> dict[str, float]:
        """What the curriculum believes, named curriculum/..."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything the future depends on, random numbers included: JSON values and arrays."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state` was taken.

        ValueError that names the difference where it belongs to other prompts.
        """
        ...
