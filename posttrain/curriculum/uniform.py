"""Uniform: every prompt alike, in whole groups; the control, and the base of simpler curricula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Generic, Literal, TypeVar

from posttrain.curriculum.arrays import Ints, Mask, np
from posttrain.curriculum.counts import History, StepCounts
from posttrain.curriculum.pool import Choice, Pool, check_kind
from posttrain.curriculum.protocol import CurriculumSpec, Proposal
from posttrain.records import Prompt, RolloutGroup

AnySpec = TypeVar("AnySpec", bound=CurriculumSpec)


class UniformSpec(CurriculumSpec):
    """Every prompt alike; the control, and with refills DAPO's dynamic sampling, with oversample
    LILO's selection by variance."""

    kind: Literal["uniform"]


class Uniform(Generic[AnySpec]):
    """Goes through each capability's prompts in random order, all of them before any a second time.

    What it observes changes its metrics only. A simpler curriculum is this class with another
    `choose`, and with `learn` if it keeps more than the history; see mopps.py.
    """

    def __init__(
        self,
        spec: AnySpec,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        tags: Mapping[str, float] | None = None,
    ) -> None:
        self.spec = spec
        self.pool = Pool(prompts, quotas=spec.quotas, seed=seed)
        self.history = History(self.pool)

    # To be overridden

    def choose(self, capability: int, num_prompts: int, taken_P: Mask) -> list[Choice]:
        """Choose prompts of one capability, see pool.Choose."""
        chosen = self.longest_unseen(self.pool.free(capability, taken_P), num_prompts)
        taken_P[chosen] = True
        return [Choice(index=i, reason="selected") for i in chosen.tolist()]

    def learn(self, counts: StepCounts) -> None:
        """Learn from outcomes observed since the last call; the history has them already.

        All are of one step. A step with refills calls it more than once.
        """

    def grow(self) -> None:
        """Make room for prompts that were added to the pool."""

    def own_state(self) -> dict[str, Any]:
        """Return what a subclass adds to the state."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what a subclass added to the state."""

    # The interface, see protocol.Curriculum

    def propose(
        self,
        num_prompts: int,
        *,
        num_generations: int,
        exclude: Set[str] = frozenset(),
        capability: str | None = None,
    ) -> list[Proposal]:
        """Choose from what was observed before this call."""
        for counts in self.history.settle():
            self.learn(counts)
        proposals = self.pool.draw(num_prompts, self.choose, exclude=exclude, capability=capability)
        self.history.mark_proposed(self.pool.indices([p.prompt_id for p in proposals]))
        return proposals

    def continues(self, prompt_id: str, *, num_passed: int, num_decided: int) -> bool:
        """Return True: there are no pilots, groups are drawn whole."""
        return True

    def observe(self, group: RolloutGroup) -> None:
        """Keep one scored group until the next proposal."""
        self.history.put(group)

    def prompts_to_score(self, batch_size: int) -> list[str]:
        """Return []: no likelihood is used."""
        return []

    def observe_likelihood(self, logprobs: Mapping[str, float | None], *, step: int) -> None:
        """Ignore likelihoods."""

    def advantages(
        self, proposal: Proposal, outcomes: Sequence[bool | None], *, scale: bool
    ) -> list[float] | None:
        """Return None: the trainer's group baseline is kept."""
        return None

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Put new prompts into the pool."""
        self.pool.add(prompts)
        self.history.grow()
        self.grow()

    def metrics(self) -> dict[str, float]:
        """Return each capability's share of prompts seen and its pass rate."""
        return self.history.metrics()

    def reliability(self) -> list[tuple[float, float, int]]:
        """Return []: no pass rate is predicted."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return the pool's, the history's and the subclass's state."""
        return {
            "kind": self.spec.kind_name(),
            "pool": self.pool.state_dict(),
            "history": self.history.state_dict(),
            **self.own_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; ValueError if it belongs to another kind or other prompts."""
        check_kind(state, self.spec.kind_name())
        self.pool.load_state_dict(state["pool"])
        self.history.load_state_dict(state["history"])
        self.load_own_state(state)

    def longest_unseen(self, candidates: Ints, num_prompts: int) -> Ints:
        """Return the candidates proposed longest ago, or never; ties at random."""
        if num_prompts >= len(candidates):
            return candidates
        keys = self.history.proposed_P[candidates] + self.pool.rng.random(len(candidates))
        return candidates[np.argpartition(keys, num_prompts)[:num_prompts]]
