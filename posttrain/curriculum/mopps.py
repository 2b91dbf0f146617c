"""MoPPS: Thompson sampling from a discounted Beta posterior per prompt, nearest to one half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from posttrain.curriculum.arrays import Mask, np
from posttrain.curriculum.counts import StepCounts
from posttrain.curriculum.pool import Choice
from posttrain.curriculum.protocol import CurriculumSpec
from posttrain.curriculum.uniform import Uniform
from posttrain.records import Prompt
from posttrain.spec import Share


class MoppsSpec(CurriculumSpec):
    """Thompson sampling from a discounted Beta per prompt, nearest to a target; as MoPPS."""

    kind: Literal["mopps"]
    target: Share = 0.5
    """The pass rate that is sought."""
    discount: Share = 0.5
    """Weight left to a prompt's older groups at each new one."""
    candidates: int = Field(default=8, ge=1)
    """Random prompts per prompt that is chosen."""


class Mopps(Uniform[MoppsSpec]):
    """Choose, among random candidates, the prompts whose sampled pass rate is nearest the target.

    arXiv 2507.04632: alpha <- discount * alpha + (1 - discount) * alpha_0 + passes, beta alike, at
    each visit. As in the text: the released code has a precedence slip that sets alpha to 8 when a
    group has one rollout, which is left out.
    """

    def __init__(
        self,
        spec: MoppsSpec,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        tags: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(spec, prompts, seed=seed, tags=tags)
        self._alpha_P = np.ones(len(prompts))
        self._beta_P = np.ones(len(prompts))

    def choose(self, capability: int, num_prompts: int, taken_P: Mask) -> list[Choice]:
        """Sample a pass rate for random candidates; take those nearest to the target."""
        free = self.pool.free(capability, taken_P)
        num_candidates = min(len(free), self.spec.candidates * num_prompts)
        rng = self.pool.rng
        candidates = rng.choice(free, num_candidates, replace=False, shuffle=False)
        sampled = rng.beta(self._alpha_P[candidates], self._beta_P[candidates])
        nearest = np.argsort(np.abs(sampled - self.spec.target), kind="stable")[:num_prompts]
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

    def learn(self, counts: StepCounts) -> None:
        """Update the posteriors of the prompts that came."""
        i, kept = counts.index_N, self.spec.discount
        failed_N = counts.num_decided_N - counts.num_passed_N
        self._alpha_P[i] = kept * self._alpha_P[i] + (1.0 - kept) + counts.num_passed_N
        self._beta_P[i] = kept * self._beta_P[i] + (1.0 - kept) + failed_N

    def grow(self) -> None:
        """Give added prompts the uniform prior, Beta(1, 1)."""
        new = np.ones(len(self.pool) - len(self._alpha_P))
        self._alpha_P = np.append(self._alpha_P, new)
        self._beta_P = np.append(self._beta_P, new)

    def own_state(self) -> dict[str, Any]:
        """Return the posteriors."""
        return {"alpha": self._alpha_P.copy(), "beta": self._beta_P.copy()}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Continue from saved posteriors."""
        self._alpha_P, self._beta_P = np.array(state["alpha"]), np.array(state["beta"])
