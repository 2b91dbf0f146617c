"""Every prompt alike: the control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from posttrain.curriculum.estimate import PassRates
from posttrain.curriculum.pool import Pool
from posttrain.curriculum.protocol import Proposal
from posttrain.recipe.schema import UniformCurriculum
from posttrain.records import Prompt, RolloutGroup


class Uniform:
    """Goes through each capability's prompts in random order, all of them before any a second time.

    What it observes changes its metrics only.
    """

    def __init__(self, spec: UniformCurriculum, prompts: Sequence[Prompt], *, seed: int) -> None:
        self._pool = Pool(prompts, quotas=spec.quotas, explore=0.0, seed=seed)
        self._rates = PassRates(prompts, prior_pass_rate=0.5, prior_weight=2.0, discount=0.5)

    def propose(
        self,
        num_prompts: int,
        *,
        num_generations: int,
        exclude: Set[str] = frozenset(),
        capability: str | None = None,
    ) -> list[Proposal]:
        """See Curriculum.propose."""
        everyone_P = np.ones(len(self._pool.prompt_ids), dtype=np.bool_)
        return self._pool.draw(num_prompts, everyone_P, exclude=exclude, capability=capability)

    def continues(self, prompt_id: str, *, num_passed: int, num_decided: int) -> bool:
        """Groups are drawn whole."""
        return True

    def observe(self, group: RolloutGroup) -> None:
        """See Curriculum.observe."""
        self._rates.observe(group)

    def to_probe(self, num_prompts: int) -> list[str]:
        """No likelihood is used."""
        return []

    def observe_likelihood(self, logprobs: Mapping[str, float], *, step: int) -> None:
        """No likelihood is used."""

    def add(self, prompts: Sequence[Prompt]) -> None:
        """See Curriculum.add."""
        self._pool.add(prompts)
        self._rates.add(prompts)

    def metrics(self) -> dict[str, float]:
        """Per capability: share of prompts seen, mean estimated pass rate."""
        seen_P, mean_P = self._rates.seen_P, self._rates.mean_P()
        return {
            f"curriculum/{capability}/{name}": float(np.mean(values_P[members]))
            for capability, members in self._pool.members.items()
            for name, values_P in (("seen", seen_P), ("pass_rate", mean_P))
        }

    def state_dict(self) -> dict[str, Any]:
        """See Curriculum.state_dict."""
        return {
            "kind": "uniform",
            "pool": self._pool.state_dict(),
            "rates": self._rates.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Curriculum.load_state_dict."""
        if state["kind"] != "uniform":
            raise ValueError(
                f"the saved curriculum is of kind {state['kind']}, this one is uniform"
            )
        self._pool.load_state_dict(state["pool"])
        self._rates.load_state_dict(state["rates"])
