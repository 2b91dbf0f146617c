"""The curriculum interface: propose, continue, observe, score, save, restore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol, get_args

from pydantic import Field

from posttrain.records import Prompt, RolloutGroup
from posttrain.spec import Share, Spec

Reason = Literal["selected", "explored", "reviewed", "retried", "filled"]
"""Reason for a prompt: for its score; at random among untried prompts; to check that it is still
solved; to check whether it is still unsolved; because no better prompt was left."""


class CurriculumSpec(Spec):
    """Keys that every curriculum YAML may hold; each curriculum adds `kind` and its own."""

    max_refills: int = Field(default=0, ge=0)
    """Rounds in which groups without signal are replaced before a step is trained."""
    refill_below: Share = 1.0
    """Share of the batch with signal from which on no refill is worth another round."""
    max_rollouts: float = Field(default=64.0, ge=1.0)
    """Soft cap on a step's rollouts, in whole batches: no refill starts past it."""
    oversample: float = Field(default=1.0, ge=1.0)
    """Prompts rolled out at first per prompt that is trained on; those with the largest variance of
    outcomes are trained on."""
    max_steps_without_signal: int = Field(default=50, ge=1)
    """Steps in a row without any group with signal after which the run stops for health."""
    quotas: dict[str, Annotated[float, Field(ge=0.0)]] | None = None
    """Capability -> its share of every batch; equal shares where left out."""

    @classmethod
    def kind_name(cls) -> str:
        """Return the `kind` that chooses this curriculum in YAML."""
        annotation: Any = cls.model_fields["kind"].annotation
        return str(get_args(annotation)[0])


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
    """Rollouts to draw before `continues` is asked; None draws the whole group at once."""
    decision: Mapping[str, float] = field(default_factory=dict[str, float])
    """Numbers behind the choice (alpha, beta, score, centre, quota, ...), for people to read."""


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
        """Return distinct prompts in random order; fewer than asked only if the pool is smaller.

        Without `capability` every capability gets its quota of the batch; with it, all prompts come
        from that capability (a refill). `exclude` names prompts that must not come, such as those
        in flight. `num_generations` is the size of a whole group.
        """
        ...

    def continues(self, prompt_id: str, *, num_passed: int, num_decided: int) -> bool:
        """Return whether the rest of a group is worth drawing, given its pilot's outcomes."""
        ...

    def observe(self, group: RolloutGroup) -> None:
        """Learn from one scored group, whole or stopped after its pilot."""
        ...

    def prompts_to_score(self, batch_size: int) -> list[str]:
        """Return the prompts whose reference answer's log-likelihood is wanted before a batch."""
        ...

    def observe_likelihood(self, logprobs: Mapping[str, float | None], *, step: int) -> None:
        """Learn from prompt_id -> log-probability, in nats, of reference answer and end token.

        None marks a prompt without an answer to score; it is not asked about again.
        """
        ...

    def advantages(
        self, proposal: Proposal, outcomes: Sequence[bool | None], *, scale: bool
    ) -> list[float] | None:
        """Return a group's advantages against the curriculum's own baseline.

        `scale` divides them by a standard deviation. None keeps the trainer's group baseline.
        """
        ...

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Put new prompts into the pool."""
        ...

    def metrics(self) -> dict[str, float]:
        """Return the state in numbers, named curriculum/..., as of the last proposal."""
        ...

    def reliability(self) -> list[tuple[float, float, int]]:
        """Return (mean predicted pass rate, observed one, rollouts) by bins; [] without any."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything the future depends on, random numbers included: JSON values, arrays."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken.

        Raise ValueError that names the difference if the state belongs to other prompts.
        """
        ...
