"""The YAML schema of the answer judge."""

from __future__ import annotations

from pydantic import model_validator

from posttrain.recipe.models import EngineSpec
from posttrain.spec import Share, Spec, wrong


class AnswerJudge(Spec):
    """The model behind `verifier: judge`: it scores answers by a rubric, a threshold decides."""

    rubric: str
    """A judge YAML of kind rubric, about the quality of the answer."""
    model: str | None = None
    """Hub name or local path of the judging model; the recipe's base where left out."""
    revision: str | None = None
    """Hub revision of `model`."""
    engine: EngineSpec = EngineSpec(kind="transformers")
    """Where it runs; openai asks a server of that model."""
    calibration: str | None = None
    """A JSONL or Parquet file of answers known to be good or bad (question, answer, good): sets the
    threshold, and stops the run where the judge cannot tell them apart."""
    threshold: Share | None = None
    """An answer passes from this score on; found by the calibration where left out."""

    @model_validator(mode="after")
    def _decides(self) -> AnswerJudge:
        if self.calibration is None and self.threshold is None:
            raise wrong("give calibration, a file of good and bad answers, or a threshold")
        return self
