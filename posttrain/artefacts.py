"""Write and read the files of finished stages as typed values.

Stages write through this module and everybody else reads through it, so that a format stands in one
place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from posttrain.metrics import Interval
from posttrain.prune import PruneDecision
from posttrain.records import PreferencePair, Prompt, RolloutGroup, Sample, Verdict
from posttrain.run_directory import SUMMARY, read_json_object
from posttrain.tables import DamagedFile, read_groups, read_records, write_json, write_records
from posttrain.tables.files import finite

Record = TypeVar("Record")

MODEL = "model.json"
QUARANTINE = "quarantine.parquet"
POLICY = "policy"
METRICS = "metrics.jsonl"
PILOT = "pilot.parquet"
CURRICULUM = "curriculum.jsonl"
PARITY = "parity.jsonl"
SANDBOX = "sandbox.json"
ANSWER_JUDGE = "answer_judge.json"
EVALUATION = "eval-"
"""Prefix of the names of evaluation stages; the rest is a point of eval.after."""
BASE = "base"
"""The point of eval.after before anything is trained; the others are training stages."""


@dataclass(frozen=True, slots=True)
class RecordTable(Generic[Record]):
    """A Parquet file of records in a stage's folder."""

    name: str
    record: type[Record]

    def write(self, folder: Path, records: Sequence[Record]) -> None:
        """Write the file."""
        write_records(folder / self.name, records, self.record)

    def read(self, folder: Path) -> list[Record]:
        """Read the file."""
        return read_records(folder / self.name, self.record)


SAMPLES = RecordTable("samples.parquet", Sample)
PROMPTS = RecordTable("prompts.parquet", Prompt)
VERDICTS = RecordTable("verdicts.parquet", Verdict)
PROMPT_VERDICTS = RecordTable("prompt_verdicts.parquet", Verdict)
"""Verdicts on RL prompts; their sample_id is the prompt_id."""
KEPT = RecordTable("kept.parquet", PruneDecision)
DROPPED = RecordTable("dropped.parquet", PruneDecision)
UNSCORED = RecordTable("unscored.parquet", PruneDecision)
PAIRS = RecordTable("pairs.parquet", PreferencePair)


def suite_table(suite: str) -> RecordTable[Prompt]:
    """Return the data stage's table of a held-out suite."""
    return RecordTable(f"suites/{suite}.parquet", Prompt)


def read_suites(data: Path) -> list[Prompt]:
    """Read the prompts of every held-out suite."""
    tables = sorted((data / "suites").glob("*.parquet"))
    return [prompt for table in tables for prompt in read_records(table, Prompt)]


def outcomes_name(suite: str) -> str:
    """Return the name of an evaluation's table of answers to a suite."""
    return f"outcomes-{suite}.parquet"


def outcome_tables(evaluation: Path) -> list[Path]:
    """Return an evaluation's tables of answers, one per suite."""
    return sorted(evaluation.glob(outcomes_name("*")))


def rollout_tables(rl: Path) -> list[Path]:
    """Return the RL stage's tables of rollouts, one per step, oldest first."""
    return sorted((rl / "rollouts").glob("step-*.parquet"))


def read_rollouts(rl: Path) -> Iterator[RolloutGroup]:
    """Read every group of the RL stage, oldest first."""
    for table in rollout_tables(rl):
        yield from read_groups(table)


def read_added_prompts(rl: Path) -> list[Prompt]:
    """Read the prompts that came up during RL, oldest first."""
    tables = sorted((rl / "prompts").glob("step-*.parquet"))
    return [prompt for table in tables for prompt in read_records(table, Prompt)]


def read_base_path(model: Path) -> Path:
    """Return the folder of the base model's weights, as the model stage found it."""
    path = model / MODEL
    value = read_json_object(path)
    if not isinstance(value.get("path"), str):
        raise DamagedFile(f"{path} names no path")
    return Path(value["path"])


@dataclass(frozen=True, kw_only=True, slots=True)
class CapabilityResult:
    """Results of a policy on one capability of a suite; NaN where nothing can be estimated."""

    pass_at_1: Interval
    pass_at_k: Mapping[int, float]
    constant: float
    """pass@1 of the best constant answer: the one that passes most prompts."""
    num_prompts: int
    tokens: int
    """Generated tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteResult:
    """Results of a policy on one suite."""

    capabilities: Mapping[str, CapabilityResult]
    macro: Interval
    """pass@1, averaged over capabilities."""
    tokens: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return what summary.json says of the suite; None stands for NaN."""
        capabilities = {
            name: {
                "pass@1": asdict(result.pass_at_1),
                "pass@k": {str(k): value for k, value in result.pass_at_k.items()},
                "constant": result.constant,
                "num_prompts": result.num_prompts,
                "tokens": result.tokens,
            }
            for name, result in self.capabilities.items()
        }
        values = {
            "capabilities": capabilities,
            "macro": asdict(self.macro),
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        return finite(values)

    @property
    def macro_pass_at_k(self) -> dict[int, float]:
        """Return pass@k, averaged over capabilities, for each k that all of them have."""
        tables = [result.pass_at_k for result in self.capabilities.values()]
        shared = sorted(set[int].intersection(*map(set, tables))) if tables else []
        return {k: _mean(table[k] for table in tables) for k in shared}

    @property
    def macro_constant(self) -> float:
        """Return the best constant answers' pass@1, averaged over capabilities."""
        return _mean(result.constant for result in self.capabilities.values())

    @property
    def num_prompts(self) -> int:
        """Return the number of prompts of all capabilities."""
        return sum(result.num_prompts for result in self.capabilities.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """Results of an evaluation stage."""

    suites: Mapping[str, SuiteResult]
    tokens: int
    seconds: float
    """Seconds of the whole stage, including the start of the engine."""

    def write(self, folder: Path) -> None:
        """Write the stage's summary.json."""
        suites = {name: suite.as_json() for name, suite in self.suites.items()}
        write_json(
            folder / SUMMARY, {"suites": suites, "tokens": self.tokens, "seconds": self.seconds}
        )


def read_evaluation(folder: Path) -> EvaluationResult:
    """Read an evaluation stage's summary.json; raises DamagedFile."""
    path = folder / SUMMARY
    values = read_json_object(path)
    try:
        suites = {name: _suite_result(suite) for name, suite in values["suites"].items()}
        return EvaluationResult(
            suites=suites, tokens=int(values["tokens"]), seconds=float(values["seconds"])
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFile(f"{path} is no summary of an evaluation: {error!r}") from error


def _suite_result(values: Mapping[str, Any]) -> SuiteResult:
    capabilities = {
        name: CapabilityResult(
            pass_at_1=_interval(entry["pass@1"]),
            pass_at_k={int(k): _number(value) for k, value in entry["pass@k"].items()},
            constant=_number(entry["constant"]),
            num_prompts=int(entry["num_prompts"]),
            tokens=int(entry["tokens"]),
        )
        for name, entry in values["capabilities"].items()
    }
    return SuiteResult(
        capabilities=capabilities,
        macro=_interval(values["macro"]),
        tokens=int(values["tokens"]),
        seconds=float(values["seconds"]),
    )


def _interval(values: Mapping[str, Any]) -> Interval:
    return Interval(**{name: _number(values[name]) for name in ("mean", "low", "high")})


def _number(value: Any) -> float:
    """Return a JSON number; null stands for NaN."""
    return math.nan if value is None else float(value)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan
