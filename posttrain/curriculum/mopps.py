"""MoPPS: Thompson sampling from a discounted Beta per prompt, nearest to one half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.curriculum.inbox import Visits
from posttrain.curriculum.pool import Choice, Mask
from posttrain.curriculum.uniform import Uniform
from posttrain.recipe.curricula import MoppsCurriculum
from posttrain.records import Prompt


class Mopps(Uniform):
    """Of `candidates` times as many random prompts, those whose sampled pass rate is nearest 1/2.

    arXiv 2507.04632: alpha <- discount * alpha + (1 - discount) * alpha_0 + passes, beta alike, at
    each visit. As in the text: the released code has a precedence slip that sets alpha to 8 when a
    group has one rollout, which is left out.
    """

    def __init__(self, spec: MoppsCurriculum, prompts: Sequence[Prompt], *, seed: int) -> None:
        super().__init__(spec, prompts, seed=seed)
        self._spec = spec
        self._alpha_P = np.ones(len(prompts))
        self._beta_P = np.ones(len(prompts))

    def _choose(self, capability: int, num_prompts: int, taken_P: Mask) -> list[Choice]:
        free = self._free(capability, taken_P)
        num_candidates = min(len(free), self._spec.candidates * num_prompts)
        rng = self._pool.rng
        candidates = rng.choice(free, num_candidates, replace=False, shuffle=False)
        sampled = rng.beta(self._alpha_P[candidates], self._beta_P[candidates])
        nearest = np.argsort(np.abs(sampled - self._spec.target), kind="stable")[:num_prompts]
        chosen = candidates[nearest]
        taken_P[chosen] = True
        return [
            Choice(
                index=i,
                reason="selected",
                decision={
                    "alpha": float(self._alpha_P[i]),
                    "beta": float(self._beta_P[i]),
                    "sampled_pass_rate": float(sampled[n]),
                },
            )
            for i, n in zip(chosen.tolist(), nearest.tolist(), strict=True)
        ]

    def _learn(self, visits: Visits) -> None:
        i, kept = visits.index_N, self._spec.discount
        failed_N = visits.num_decided_N - visits.num_passed_N
        self._alpha_P[i] = kept * self._alpha_P[i] + (1.0 - kept) + visits.num_passed_N
        self._beta_P[i] = kept * self._beta_P[i] + (1.0 - kept) + failed_N

    def _grow(self) -> None:
        new = np.ones(len(self._pool) - len(self._alpha_P))
        self._alpha_P = np.append(self._alpha_P, new)
        self._beta_P = np.append(self._beta_P, new)

    def _own_state(self) -> dict[str, Any]:
        return {"alpha": self._alpha_P.copy(), "beta": self._beta_P.copy()}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        self._alpha_P, self._beta_P = np.array(state["alpha"]), np.array(state["beta"])
