"""The YAML schema of where rows come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from posttrain.rewards import VERIFIERS
from posttrain.spec import Spec, wrong

Column = Literal["messages", "prompt", "question", "answer", "completion", "reference"]
if TYPE_CHECKING:
    VerifierName = str
else:
    VerifierName = Literal[tuple(VERIFIERS)]

DEFAULT_MAX = 4
"""The highest level where none is given."""


class Levels(Spec):
    """An endless source whose level rises where it is mastered and falls where it is dead.

    Levels are those of reasoning-gym's own curricula, counted from 0.
    """

    start: int = Field(default=0, ge=0)
    """The level of the first prompts."""
    min: int = Field(default=0, ge=0)
    """The lowest."""
    max: int | None = Field(default=None, ge=0)
    """The highest; null is 4, or a family's last where that is lower."""
    rise: float = Field(default=0.8, gt=0.0, le=1.0)
    """Pass rate from which it rises."""
    fall: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Pass rate up to which it falls."""
    min_rollouts: int = Field(default=64, ge=1)
    """Rollouts at a level before it may change."""

    @model_validator(mode="after")
    def _in_order(self) -> Levels:
        highest = DEFAULT_MAX if self.max is None else self.max
        if not self.min <= self.start <= highest:
            raise wrong(f"must lie in min..max ({self.min}..{highest})", "start")
        if self.fall >= self.rise:
            raise wrong(f"must be below rise ({self.rise:g})", "fall")
        return self


class PythonFunctions(Spec):
    """Small Python problems with tests, for verifier code."""

    levels: list[Annotated[int, Field(ge=1, le=5)]] = Field(default=[1], min_length=1)
    """Mixed evenly: 1 one operation on a number, 2 two of them, 3 texts, 4 lists, 5 conditions."""


class Constraints(Spec):
    """Writing tasks with constraints on the form, for verifier instructions."""

    levels: list[Annotated[int, Field(ge=1, le=4)]] = Field(default=[1], min_length=1)
    """Mixed evenly: how many constraints a task has."""


class Generated(Spec):
    """Tasks that posttrain makes itself: endless, seeded, each with a checked answer."""

    python_functions: PythonFunctions | None = None
    """`{levels: [1, 2]}`."""
    constraints: Constraints | None = None
    """`{levels: [1]}`; needs the extra instructions."""

    @model_validator(mode="after")
    def _some(self) -> Generated:
        if self.python_functions is None and self.constraints is None:
            raise wrong("names no generator: python_functions or constraints")
        return self

    @property
    def named(self) -> dict[str, PythonFunctions | Constraints]:
        """The generators that are asked for, by name."""
        both = {"python_functions": self.python_functions, "constraints": self.constraints}
        return {name: spec for name, spec in both.items() if spec is not None}


class DataSource(Spec):
    """Where rows come from: exactly one of `path`, `reasoning_gym` and `generated`."""

    path: str | None = Field(default=None, min_length=1)
    """A JSONL or Parquet file, or the name of a `datasets` data set."""
    reasoning_gym: list[str] | dict[str, dict[str, Any]] | None = None
    """Families, or family -> its own configuration keys; `{level: 2}` sets them by the family's own
    curriculum, 0 the easiest."""
    levels: Levels | None = None
    """rl.data's reasoning_gym: new prompts without end, of a level that follows the policy; size is
    how many are made at once. A family's own keys stay fixed."""
    generated: Generated | None = None
    """Tasks that posttrain makes itself: `{python_functions: {levels: [1]}}`."""
    split: str = "train"
    """For `datasets` names."""
    size: int | None = Field(default=None, ge=1)
    """Rows to take; per family or generator where rows are made, and then it must be given."""
    capability: str | None = None
    """Tag for quotas and tables; the family's or generator's name where left out."""
    columns: dict[Column, str] = Field(default_factory=dict[Column, str])
    """Our field -> your column, where they differ. reference is what the verifier compares with,
    where that is not the answer: tests of code, constraints, options."""
    verifier: VerifierName | None = None
    """What decides an answer; reasoning_gym and generated data bring their own, judge is
    answer_judge's model."""
    system: str | None = None
    """A system turn put before every conversation."""
    suffix: str = ""
    """Text added to every question, for example an answer format."""

    @model_validator(mode="after")
    def _one_source(self) -> DataSource:
        kinds = ("path", "reasoning_gym", "generated")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise wrong("give exactly one of path, reasoning_gym and generated")
        if self.path is not None:
            if self.capability is None:
                raise wrong("path needs a capability, the tag its rows are counted under", "path")
            if self.levels is not None:
                raise wrong("only reasoning_gym has levels", "levels")
            if self.verifier == "reasoning_gym":
                message = "reasoning_gym scores its own data only: choose exact or math"
                raise wrong(message, "verifier")
            return self
        (kind,) = given
        if self.size is None:
            what = "family" if kind == "reasoning_gym" else "generator"
            raise wrong(f"{kind} is endless: give size, the rows per {what}", kind)
        if self.reasoning_gym is not None and not self.reasoning_gym:
            raise wrong("names no family", "reasoning_gym")
        if self.levels is not None:
            _check_levels(self)
        if self.verifier not in (None, kind):
            scored = "is scored by its own verifier: leave verifier out"
            raise wrong(f"{kind} data {scored}", "verifier")
        if self.columns:
            raise wrong(f"columns belongs to path; {kind} rows have no columns", "columns")
        return self


def _check_levels(source: DataSource) -> None:
    if source.reasoning_gym is None:
        raise wrong("only reasoning_gym has levels", "levels")
    if isinstance(source.reasoning_gym, dict):
        for family, config in source.reasoning_gym.items():
            if "level" in config:
                raise wrong(f"moves the level: leave level out of {family}", "levels")


def verifiers_of(source: DataSource) -> set[str]:
    """Return the verifiers of a source's rows; empty where it has none."""
    if source.reasoning_gym is not None:
        return {"reasoning_gym"}
    if source.generated is not None:
        made = {
            "code": source.generated.python_functions,
            "instructions": source.generated.constraints,
        }
        return {verifier for verifier, asked in made.items() if asked is not None}
    return set() if source.verifier is None else {source.verifier}
