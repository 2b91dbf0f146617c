"""The YAML schema of curricula/: which prompts next?"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.recipe.spec import Share, Spec, wrong


class UniformCurriculum(Spec):
    """Every prompt alike; the control."""

    kind: Literal["uniform"]
    max_refills: int = Field(default=0, ge=0)
    """Rounds in which groups without signal are replaced before a step is trained."""
    quotas: dict[str, Annotated[float, Field(ge=0.0)]] | None = None
    """Capability -> its share of every batch; equal shares where left out."""


class BandCurriculum(Spec):
    """Prefer prompts whose estimated pass rate lies in a band."""

    kind: Literal["band"]
    low: Share = 0.1
    """The band's lower end, an estimated pass rate."""
    high: Share = 0.9
    """The band's upper end."""
    prior_pass_rate: Share = 0.5
    """Of a prompt that was never tried."""
    prior_weight: float = Field(default=2.0, gt=0)
    """How many rollouts the prior counts as."""
    discount: float = Field(default=0.5, ge=0.0, le=1.0)
    """Weight left to older groups at each new one of the same prompt; the policy moves."""
    explore: Share = 0.1
    """Share of each batch drawn without looking at the band."""
    max_refills: int = Field(default=2, ge=0)
    """Rounds in which groups without signal are replaced before a step is trained."""
    quotas: dict[str, Annotated[float, Field(ge=0.0)]] | None = None
    """Capability -> its share of every batch; equal shares where left out."""

    @model_validator(mode="after")
    def _band(self) -> BandCurriculum:
        if self.low >= self.high:
            raise wrong(f"must be below high ({self.high:g})", "low")
        return self


CurriculumSpec = Annotated[UniformCurriculum | BandCurriculum, Field(discriminator="kind")]
