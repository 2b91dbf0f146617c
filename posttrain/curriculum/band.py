"""Prefer prompts that the policy passes sometimes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.curriculum.estimate import PassRates
from posttrain.curriculum.pool import Pool
from posttrain.curriculum.protocol import Proposal
from posttrain.recipe.schema import BandCurriculum
from posttrain.records import Prompt, RolloutGroup


class Band:
    """Draws prompts whose estimated pass rate lies in [low, high], and a share without looking.

    Where the band holds too few, others of the same capability fill the batch.
    """

    def __init__(
        self,
        spec: BandCurriculum,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        prior: Mapping[str, float] | None = None,
    ) -> None:
        self._spec = spec
        self._pool = Pool(prompts, quotas=spec.quotas, explore=spec.explore, seed=seed)
        self._rates = PassRates(
            prompts,
            prior_pass_rate=spec.prior_pass_rate,
            prior_weight=spec.prior_weight,
            discount=spec.discount,
            prior=prior,
        )

    def propose(
        self,
        num_prompts: int,
        *,
        num_generations: int,
        exclude: Set[str] = frozenset(),
        capability: str | None = None,
    ) -> list[Proposal]:
        """See Curriculum.propose."""
        return self._pool.draw(
            num_prompts, self._in_band_P(), exclude=exclude, capability=capability
        )

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
        """Per capability: share of prompts in the band, share seen, mean estimate."""
        in_band_P, seen_P, mean_P = self._in_band_P(), self._rates.seen_P, self._rates.mean_P()
        return {
            f"curriculum/{capability}/{name}": float(np.mean(values_P[members]))
            for capability, members in self._pool.members.items()
            for name, values_P in (("in_band", in_band_P), ("seen", seen_P), ("pass_rate", mean_P))
        }

    def state_dict(self) -> dict[str, Any]:
        """See Curriculum.state_dict."""
        return {
            "kind": "band",
            "pool": self._pool.state_dict(),
            "rates": self._rates.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Curriculum.load_state_dict."""
        if state["kind"] != "band":
            raise ValueError(f"the saved curriculum is of kind {state['kind']}, this one is band")
        self._pool.load_state_dict(state["pool"])
        self._rates.load_state_dict(state["rates"])

    def _in_band_P(self) -> npt.NDArray[np.bool_]:
        mean_P = self._rates.mean_P()
        return (mean_P >= self._spec.low) & (mean_P <= self._spec.high)
