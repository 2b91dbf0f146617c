"""The YAML schema of curricula/: which prompts next?"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.spec import Share, Spec, wrong


class _Curriculum(Spec):
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


class UniformCurriculum(_Curriculum):
    """Every prompt alike; the control, and with refills DAPO's dynamic sampling, with oversample
    LILO's selection by variance."""

    kind: Literal["uniform"]


class RetiringCurriculum(_Curriculum):
    """Uniform, without prompts that nearly always pass; as in ScaleRL."""

    kind: Literal["retiring"]
    pass_rate_cap: Share = 0.9
    """A prompt whose pass rate over all its rollouts reaches it is not shown again."""


class DifficultyPoolsCurriculum(_Curriculum):
    """Weights by the latest group's pass rate; as in prime-rl."""

    kind: Literal["difficulty_pools"]
    hard: Share = 0.25
    """Up to this pass rate a prompt is hard."""
    normal: Share = 0.75
    """Up to this pass rate it is normal, above it easy."""
    hard_weight: float = Field(default=0.2, gt=0)
    """How readily a hard prompt is drawn; unseen ones weigh 1."""
    normal_weight: float = Field(default=1.0, gt=0)
    """How readily a normal one is."""
    easy_weight: float = Field(default=0.2, gt=0)
    """How readily an easy one is."""

    @model_validator(mode="after")
    def _rising(self) -> DifficultyPoolsCurriculum:
        if self.hard >= self.normal:
            raise wrong(f"must be below normal ({self.normal:g})", "hard")
        return self


class MoppsCurriculum(_Curriculum):
    """Thompson sampling from a discounted Beta per prompt, nearest to a target; as MoPPS."""

    kind: Literal["mopps"]
    target: Share = 0.5
    """The pass rate that is sought."""
    discount: Share = 0.5
    """Weight left to a prompt's older groups at each new one."""
    candidates: int = Field(default=8, ge=1)
    """Random prompts per prompt that is chosen."""


class AdaptiveCurriculum(_Curriculum):
    """Prompts whose next group will teach most, by a posterior that follows the policy."""

    kind: Literal["adaptive"]
    tags: bool = True
    """Learn from difficulty tags where prompts have them."""
    tag_bins: int = Field(default=10, ge=2)
    """Bins of the tag, each with a prior of its own."""
    probe: float = Field(default=4.0, ge=0.0)
    """Prompts whose reference answer's likelihood is scored per step, in batches; 0 turns the probe
    off. It turns itself off where it predicts no better than what is known without it."""
    probe_memory: float = Field(default=30.0, gt=0)
    """Steps after which a likelihood counts for half."""
    discount: Share | Literal["auto"] = "auto"
    """Weight left to a prompt's older groups at each new one; auto chooses by predictive loss."""
    prior_pass_rate: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Before anything was seen."""
    prior_strength: float = Field(default=1.0, gt=0)
    """How many rollouts that counts as, before it is learned how alike a stratum's prompts are."""
    shrinkage: float = Field(default=8.0, gt=0)
    """How many groups a stratum needs to count as much as what it inherits."""
    stratum_memory: float = Field(default=40.0, gt=1)
    """Steps after which a stratum's groups count for a third."""
    centre: Share = 0.5
    """Pass rate at the centre of the band at first."""
    hard_centre: Share = 0.4
    """Where the centre is when the capability is mastered."""
    width: float = Field(default=0.25, gt=0)
    """Standard deviation of the band."""
    temperature: float = Field(default=0.15, gt=0)
    """Of sampling by score; towards 0 the best are taken."""
    explore_min: Share = 0.005
    """Least share of a batch drawn without looking at the score."""
    explore_max: Share = 0.02
    """Greatest: where all of the pool is alive."""
    review: Share = 0.01
    """Share of a batch for prompts that were solved, the longest unseen first."""
    retry: Share = 0.01
    """Share of a batch for unsolved prompts whose wait is over."""
    backoff: int = Field(default=6, ge=1)
    """Steps until a prompt without a pass comes again; doubles with each time."""
    pilot: bool = True
    """Look at a few rollouts first where that saves some."""
    pilot_saves: Share = 0.1
    """Share of a batch's rollouts that pilots must promise to save, as they cost another round."""
    continue_above: float = Field(default=0.7, ge=0.0)
    """A pilot is drawn to the end where the rest promises this share of the usual signal per
    rollout."""
    baseline: Literal["group", "posterior", "leave_one_out"] = "group"
    """What an outcome is compared with in the advantage."""

    @model_validator(mode="after")
    def _ordered(self) -> AdaptiveCurriculum:
        if self.hard_centre > self.centre:
            raise wrong(f"must not be above centre ({self.centre:g})", "hard_centre")
        if self.explore_min > self.explore_max:
            raise wrong(f"must not be above explore_max ({self.explore_max:g})", "explore_min")
        if self.explore_max + self.review + self.retry > 1.0:
            raise wrong("with review and retry it is more than a batch", "explore_max")
        return self


BaselineCurriculum = (
    UniformCurriculum | RetiringCurriculum | DifficultyPoolsCurriculum | MoppsCurriculum
)
CurriculumSpec = Annotated[BaselineCurriculum | AdaptiveCurriculum, Field(discriminator="kind")]
