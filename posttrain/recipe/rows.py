"""The YAML schema of data sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from posttrain.rewards import VERIFIERS, UserFunction
from posttrain.spec import Spec, wrong

Column = Literal["messages", "prompt", "question", "answer", "completion", "reference"]
if TYPE_CHECKING:
    VerifierName = str
else:
    # The schema lists the table's verifiers by name.
    VerifierName = Literal[tuple(VERIFIERS)]
CHOOSABLE = ", ".join(v.name for v in VERIFIERS.values() if not v.own_data_only)
"""Verifiers that a file of rows can name."""

DEFAULT_MAX = 4
"""Highest level if neither the recipe nor the family says one."""


class Levels(Spec):
    """An endless source whose level rises once it is mastered and falls once nothing passes.

    Levels are those of reasoning-gym's own curricula, counted from 0.
    """

    start: int = Field(default=0, ge=0)
    """Level of the first prompts."""
    min: int = Field(default=0, ge=0)
    """Lowest level."""
    max: int | None = Field(default=None, ge=0)
    """Highest level; null is 4, or a family's last level if that is lower."""
    rise: float = Field(default=0.8, gt=0.0, le=1.0)
    """Pass rate from which the level rises."""
    fall: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Pass rate up to which the level falls."""
    min_rollouts: int = Field(default=64, ge=1)
    """Rollouts at a level before it can change."""

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

    verifier: ClassVar[str] = "code"
    levels: list[Annotated[int, Field(ge=1, le=5)]] = Field(default=[1], min_length=1)
    """Levels, mixed evenly: 1 one operation on a number, 2 two operations, 3 texts, 4 lists,
    5 conditions."""


class Constraints(Spec):
    """Writing tasks with constraints on the form, for verifier instructions."""

    verifier: ClassVar[str] = "instructions"
    levels: list[Annotated[int, Field(ge=1, le=4)]] = Field(default=[1], min_length=1)
    """Numbers of constraints per task, mixed evenly."""


class Generated(Spec):
    """Tasks that posttrain makes itself: endless, seeded, each with a checked answer."""

    python_functions: PythonFunctions | None = None
    """Small Python problems, for example `{levels: [1, 2]}`."""
    constraints: Constraints | None = None
    """Writing tasks, for example `{levels: [1]}`; needs the extra `instructions`."""

    @model_validator(mode="after")
    def _some(self) -> Generated:
        if self.python_functions is None and self.constraints is None:
            raise wrong("names no generator: python_functions or constraints")
        return self

    @property
    def named(self) -> dict[str, PythonFunctions | Constraints]:
        """Return the generators that the recipe asks for, by name."""
        both = {"python_functions": self.python_functions, "constraints": self.constraints}
        return {name: spec for name, spec in both.items() if spec is not None}


class DataSource(Spec):
    """A source of rows: exactly one of `path`, `reasoning_gym` and `generated`."""

    path: str | None = Field(default=None, min_length=1)
    """JSONL or Parquet file, or the name of a `datasets` data set."""
    reasoning_gym: list[str] | dict[str, dict[str, Any]] | None = None
    """Families of reasoning-gym, or each family's configuration keys; `{level: 2}` sets them by the
    family's own curriculum, 0 is the easiest."""
    levels: Levels | None = None
    """New prompts without end, of a level that follows the policy; for reasoning_gym in rl.data.
    `size` is the number made at once, and a family's own keys stay fixed."""
    generated: Generated | None = None
    """Tasks that posttrain makes itself: `{python_functions: {levels: [1]}}`."""
    split: str = "train"
    """Split of a `datasets` data set."""
    size: int | None = Field(default=None, ge=1)
    """Number of rows; for reasoning_gym and generated it is required, and counts per family."""
    capability: str | None = None
    """Tag for quotas and tables; left out, the name of the family or generator."""
    columns: dict[Column, str] = Field(default_factory=dict[Column, str])
    """Names of your columns by ours, if they differ. `reference` is what the verifier compares
    with, if that is not the answer: tests of code, constraints, options."""
    verifier: VerifierName | UserFunction | None = None
    """Verifier of the answers: a name, or a function of your own, `{python: my_rewards.py:score}`;
    reasoning_gym and generated data bring their own, and `judge` is the model of answer_judge."""
    system: str | None = None
    """System turn put before every conversation."""
    suffix: str = ""
    """Text added to every question, for example an answer format."""

    @field_validator("verifier", mode="before")
    @classmethod
    def _is_no_bare_target(cls, value: Any) -> Any:
        if isinstance(value, str) and (":" in value or value.endswith(".py")):
            target = value if ":" in value else f"{value}:score"
            raise ValueError(f"a function of your own is a section: write {{python: {target}}}")
        return value

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
            if isinstance(self.verifier, str) and VERIFIERS[self.verifier].own_data_only:
                message = f"{self.verifier} decides its own data only: choose one of {CHOOSABLE}"
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
            message = f"{kind} data has its own verifier: leave verifier out"
            raise wrong(message, "verifier")
        if self.columns:
            raise wrong(f"columns belongs to path; {kind} rows have no columns", "columns")
        return self

    @property
    def verifiers(self) -> list[str]:
        """Return the names of the verifiers of its rows; empty if it has none."""
        if self.reasoning_gym is not None:
            return ["reasoning_gym"]
        if self.generated is not None:
            return [spec.verifier for spec in self.generated.named.values()]
        if isinstance(self.verifier, UserFunction):
            return [self.verifier.name]
        return [] if self.verifier is None else [self.verifier]


def _check_levels(source: DataSource) -> None:
    if source.reasoning_gym is None:
        raise wrong("only reasoning_gym has levels", "levels")
    if isinstance(source.reasoning_gym, dict):
        for family, config in source.reasoning_gym.items():
            if "level" in config:
                raise wrong(f"moves the level: leave level out of {family}", "levels")
