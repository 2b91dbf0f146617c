"""The YAML schema of how answers are decided and rewarded: judge, sandbox, shaping."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

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


class SandboxSpec(Spec):
    """Where programs that the model wrote are run; used by the verifier `code`."""

    kind: Literal["auto", "landlock", "wasm", "docker", "http"] = "auto"
    """auto = the first of landlock and wasm that holds on this machine; none = the run stops."""
    wall_seconds: float = Field(default=5.0, gt=0.0, le=60.0)
    """For one run: all calls of a function's tests, or one test of a program."""
    memory_mib: int = Field(default=512, ge=64)
    """For one run."""
    output_kib: int = Field(default=256, ge=64, le=1024)
    """Of stdout, for one run."""
    image: str = "python:3.12-slim"
    """docker: an image with python."""
    url: str | None = None
    """http: a SandboxFusion server, for example http://localhost:8080."""

    @model_validator(mode="after")
    def _endpoint(self) -> SandboxSpec:
        if (self.kind == "http") != (self.url is not None):
            raise wrong("http needs url, and nothing else takes one", "kind")
        return self


Weight = Annotated[float, Field(gt=0.0, le=0.5)]


class LengthTerm(Spec):
    """Takes from the reward of a passed answer what it has too much of tokens."""

    weight: Weight = 0.1
    """Taken at `full_tokens` and beyond."""
    free_tokens: int = Field(ge=0)
    """Up to so many nothing is taken."""
    full_tokens: int = Field(ge=1)
    """From so many on the whole weight is taken, in between a part."""

    @model_validator(mode="after")
    def _ramp(self) -> LengthTerm:
        if self.free_tokens >= self.full_tokens:
            raise wrong(f"must be below full_tokens ({self.full_tokens})", "free_tokens")
        return self


class FormatTerm(Spec):
    """Adds to the reward of a passed answer that has a form."""

    weight: Weight = 0.1
    """Added where the pattern is found."""
    pattern: str = Field(min_length=1)
    """A Python regular expression, searched for in the answer."""

    @model_validator(mode="after")
    def _compiles(self) -> FormatTerm:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise wrong(f"is no regular expression: {error}", "pattern") from error
        return self


Script = Literal[
    "latin", "cyrillic", "greek", "arabic", "hebrew", "devanagari", "thai", "hangul", "hiragana",
    "katakana", "cjk",
]  # fmt: skip


class LanguageTerm(Spec):
    """Adds to the reward of a passed answer that keeps to a script."""

    weight: Weight = 0.1
    """Added where enough of the letters belong to the script."""
    script: Script
    """As Unicode names it."""
    min_share: Share = 0.9
    """Share of the letters."""


class Shaping(Spec):
    """Terms added to the reward of answers that passed; they never decide whether one passes."""

    length: LengthTerm | None = None
    """Taken from long answers."""
    format: FormatTerm | None = None
    """Given for a form."""
    language: LanguageTerm | None = None
    """Given for keeping to a script."""

    @model_validator(mode="after")
    def _stays_small(self) -> Shaping:
        terms = (self.length, self.format, self.language)
        if sum(term.weight for term in terms if term is not None) > 0.5:
            raise wrong("the weights must sum to 0.5 at most, so that passing counts most")
        return self
