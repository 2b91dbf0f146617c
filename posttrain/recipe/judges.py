"""The YAML schema of judges/: how hard is a sample?"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.spec import Share, Spec, wrong


class LikelihoodJudge(Spec):
    """Difficulty = how surprised the model is by the reference answer."""

    kind: Literal["answer_likelihood"]
    scale_nats: float = Field(default=1.0, gt=0)
    """Nats per answer token that map to a score of 1 - 1/e."""
    contrast: Share = 0.0
    """Weight of the answer's surprise without its prompt: 0 = none, 1 = the ratio of both (IFD)."""
    batch_size: int = Field(default=64, ge=1)
    """Samples per call of the engine; each batch's verdicts are kept as they come."""


class RubricJudge(Spec):
    """Difficulty = expectation over the probabilities of a rubric's labels."""

    kind: Literal["rubric"]
    system: str
    """The system turn."""
    template: str
    """Placeholders {question} and {answer}, filled once."""
    labels: dict[str, float] = Field(min_length=2)
    """Label text (one token each) -> its score in [0, 1]."""
    min_label_mass: Share = 0.5
    """Below this total probability of the labels the sample stays unscored."""
    batch_size: int = Field(default=64, ge=1)
    """Samples per call of the engine; each batch's verdicts are kept as they come."""

    @model_validator(mode="after")
    def _scale(self) -> RubricJudge:
        if bad := [label for label, score in self.labels.items() if not 0.0 <= score <= 1.0]:
            raise wrong(f"the scores of {', '.join(map(repr, bad))} must lie in [0, 1]", "labels")
        if "{question}" not in self.template:
            raise wrong("lacks {question}", "template")
        return self


JudgeSpec = Annotated[LikelihoodJudge | RubricJudge, Field(discriminator="kind")]
