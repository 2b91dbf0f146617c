"""How often the policy passes each prompt, as it is now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.records import Prompt, RolloutGroup

# The newest groups of a stratum that count, about: enough to smooth chance, few enough to follow
# the policy.
_STRATUM_MEMORY_GROUPS = 32


class PassRates:
    """A discounted Beta estimate per prompt, on top of a running mean per capability x level.

    With S passes and F fails, older groups of the prompt discounted at each new one, the estimate
    is (w p + S) / (w + S + F): the mean of a Beta(w p, w (1 - p)) prior's posterior. p is the
    prompt's own prior where there is one, else what its stratum shows, so that a level that is out
    of reach (or solved) is known from a few groups and not from a visit to each of its prompts.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        prior_pass_rate: float,
        prior_weight: float,
        discount: float,
        prior: Mapping[str, float] | None = None,
    ) -> None:
        self._index = {prompt.prompt_id: i for i, prompt in enumerate(prompts)}
        self._prior_pass_rate = prior_pass_rate
        self._prior_weight = prior_weight
        self._discount = discount
        strata = sorted({_stratum(prompt) for prompt in prompts})
        self._strata = of = {stratum: s for s, stratum in enumerate(strata)}
        self._stratum_P = np.array([of[_stratum(prompt)] for prompt in prompts], dtype=np.int64)
        self._own_prior_P = np.array(
            [_own_prior(prior or {}, prompt.prompt_id) for prompt in prompts], dtype=np.float64
        )
        self._passes_P, self._fails_P = np.zeros(len(prompts)), np.zeros(len(prompts))
        self._passes_S, self._fails_S = np.zeros(len(strata)), np.zeros(len(strata))
        self._num_groups_P = np.zeros(len(prompts), dtype=np.int64)

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Append `prompts` without evidence of their own."""
        for prompt in prompts:
            self._index[prompt.prompt_id] = len(self._index)
            self._strata.setdefault(_stratum(prompt), len(self._strata))
        strata = [self._strata[_stratum(prompt)] for prompt in prompts]
        self._stratum_P = np.append(self._stratum_P, np.array(strata, dtype=np.int64))
        self._own_prior_P = np.append(self._own_prior_P, np.full(len(prompts), np.nan))
        self._passes_P = np.append(self._passes_P, np.zeros(len(prompts)))
        self._fails_P = np.append(self._fails_P, np.zeros(len(prompts)))
        self._num_groups_P = np.append(self._num_groups_P, np.zeros(len(prompts), dtype=np.int64))
        num_new = len(self._strata) - len(self._passes_S)
        self._passes_S = np.append(self._passes_S, np.zeros(num_new))
        self._fails_S = np.append(self._fails_S, np.zeros(num_new))

    @property
    def seen_P(self) -> npt.NDArray[np.bool_]:
        """(P,) whether a decided group of the prompt was observed."""
        return self._num_groups_P > 0

    def mean_P(self) -> npt.NDArray[np.float64]:
        """(P,) estimated pass rates."""
        w = self._prior_weight
        stratum_mean_S = (w * self._prior_pass_rate + self._passes_S) / (
            w + self._passes_S + self._fails_S
        )
        prior_P = np.where(
            np.isnan(self._own_prior_P), stratum_mean_S[self._stratum_P], self._own_prior_P
        )
        return (w * prior_P + self._passes_P) / (w + self._passes_P + self._fails_P)

    def observe(self, group: RolloutGroup) -> None:
        """Count the group's decided rollouts; one without any says nothing."""
        if group.prompt_id not in self._index:
            raise ValueError(f"prompt {group.prompt_id} is not in this curriculum's pool")
        if not group.num_decided:
            return
        i = self._index[group.prompt_id]
        passed, failed = group.num_passed, group.num_decided - group.num_passed
        self._passes_P[i] = self._discount * self._passes_P[i] + passed
        self._fails_P[i] = self._discount * self._fails_P[i] + failed
        self._num_groups_P[i] += 1
        s = self._stratum_P[i]
        keep = 1.0 - 1.0 / _STRATUM_MEMORY_GROUPS
        self._passes_S[s] = keep * self._passes_S[s] + passed
        self._fails_S[s] = keep * self._fails_S[s] + failed

    def state_dict(self) -> dict[str, Any]:
        """Evidence per seen prompt and per stratum; floats survive JSON exactly."""
        seen = {
            prompt_id: [
                float(self._passes_P[i]),
                float(self._fails_P[i]),
                int(self._num_groups_P[i]),
            ]
            for prompt_id, i in self._index.items()
            if self._num_groups_P[i]
        }
        return {"prompts": seen, "strata": [self._passes_S.tolist(), self._fails_S.tolist()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        for values_P in (self._passes_P, self._fails_P, self._num_groups_P):
            values_P[:] = 0
        for prompt_id, (passes, fails, num_groups) in state["prompts"].items():
            i = self._index[prompt_id]
            self._passes_P[i], self._fails_P[i] = passes, fails
            self._num_groups_P[i] = num_groups
        self._passes_S[:], self._fails_S[:] = state["strata"]


def _stratum(prompt: Prompt) -> tuple[str, str]:
    return (prompt.capability, "" if prompt.level is None else prompt.level)


def _own_prior(prior: Mapping[str, float], prompt_id: str) -> float:
    value = prior.get(prompt_id, float("nan"))
    if prompt_id in prior and not 0.0 <= value <= 1.0:
        raise ValueError(f"prior of prompt {prompt_id}: {value} is no pass rate in [0, 1]")
    return value
