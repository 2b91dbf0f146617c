"""The YAML schema of judges: files in judges/, and the recipe's answer_judge."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from posttrain.recipe.document import as_map
from posttrain.recipe.files import FileOrSection
from posttrain.recipe.models import EngineSpec
from posttrain.spec import Share, Spec, wrong


class LikelihoodJudge(Spec):
    """Difficulty is how unlikely the reference answer is to the model."""

    kind: Literal["answer_likelihood"]
    scale_nats: float = Field(default=1.0, gt=0)
    """Surprise in nats per answer token that gives a score of 1 - 1/e."""
    contrast: Share = 0.0
    """Weight of the answer's surprise without its prompt: 0 ignores it, 1 is the ratio (IFD)."""
    batch_size: int = Field(default=64, ge=1)
    """Samples per call of the engine; verdicts are saved after every batch."""


class RubricJudge(Spec):
    """Difficulty is the mean score of a rubric's labels, weighted by their probabilities."""

    kind: Literal["rubric"]
    system: str
    """System turn of the judge's conversation."""
    template: str
    """User turn; {question} and {answer} stand for those of the sample."""
    labels: dict[str, float] = Field(min_length=2)
    """Scores in [0, 1] by label; each label is one token."""
    min_label_mass: Share = 0.5
    """Total probability of the labels below which a sample stays unscored."""
    batch_size: int = Field(default=64, ge=1)
    """Samples per call of the engine; verdicts are saved after every batch."""

    @model_validator(mode="after")
    def _scale(self) -> RubricJudge:
        if bad := [label for label, score in self.labels.items() if not 0.0 <= score <= 1.0]:
            raise wrong(f"the scores of {', '.join(map(repr, bad))} must lie in [0, 1]", "labels")
        if "{question}" not in self.template:
            raise wrong("lacks {question}", "template")
        return self


JudgeSpec = Annotated[LikelihoodJudge | RubricJudge, Field(discriminator="kind")]


def _check_is_rubric(value: Any) -> Any:
    kind = as_map(value).get("kind")
    if isinstance(kind, str) and kind != "rubric":
        raise wrong(f"is of kind {kind}: an answer judge needs a rubric", "kind")
    return value


class AnswerJudgeSpec(Spec):
    """Model behind `verifier: judge`: it scores answers by a rubric, and a threshold decides."""

    rubric: Annotated[RubricJudge, BeforeValidator(_check_is_rubric), FileOrSection("judges")]
    """Rubric about the quality of an answer: a judge file, or its content."""
    model: str | None = None
    """Hub name or local path of the judging model; left out, the recipe's base."""
    revision: str | None = None
    """Hub revision of `model`."""
    engine: EngineSpec = EngineSpec(kind="transformers")
    """Engine of the judging model; openai asks a server that has it."""
    calibration: str | None = None
    """JSONL or Parquet file of answers known to be good or bad (question, answer, good). It sets
    the threshold, and stops the run if the judge cannot tell them apart."""
    threshold: Share | None = None
    """Lowest score that passes; left out, the calibration finds it."""

    @model_validator(mode="after")
    def _decides(self) -> AnswerJudgeSpec:
        if self.calibration is None and self.threshold is None:
            raise wrong("give calibration, a file of good and bad answers, or a threshold")
        return self
