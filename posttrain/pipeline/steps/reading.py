"""What the stages before left, as values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.pipeline.context import StageContext
from posttrain.records import Prompt, Sample, Verdict
from posttrain.tables import read_json, read_records

if TYPE_CHECKING:
    from posttrain.models import PolicyPath

TRAINED = ("dpo", "rl", "sft")
"""Stages that write a policy, the newest first."""


def base_path(context: StageContext) -> Path:
    """The folder of the base model's weights."""
    return Path(read_json(context.inputs["model"] / "model.json")["path"])


def policy_before(context: StageContext) -> PolicyPath:
    """The policy of the newest training stage among the inputs; the base where there is none."""
    from posttrain.models import PolicyPath, policy_in

    base, frozen = base_path(context), context.recipe.model.frozen
    for stage in TRAINED:
        if stage in context.inputs:
            return policy_in(context.inputs[stage] / "policy", base=base, frozen=frozen)
    return PolicyPath(base=base, frozen=frozen)


def samples(context: StageContext) -> list[Sample]:
    """Every SFT sample of the data stage."""
    return read_records(context.inputs["data"] / "samples.parquet", Sample)


def prompts(context: StageContext) -> list[Prompt]:
    """The RL prompts of the data stage."""
    return read_records(context.inputs["data"] / "prompts.parquet", Prompt)


def tags(context: StageContext) -> dict[str, float]:
    """prompt_id -> how hard the judge finds it, in [0, 1]; those without a verdict are not here."""
    if "judge" not in context.inputs:
        return {}
    verdicts = read_records(context.inputs["judge"] / "prompt_verdicts.parquet", Verdict)
    return {verdict.sample_id: verdict.score for verdict in verdicts if verdict.score is not None}


def suites(context: StageContext) -> dict[str, list[Prompt]]:
    """Suite -> its held-out prompts, in the recipe's order."""
    folder = context.inputs["data"] / "suites"
    names = [s if isinstance(s, str) else s.name for s in context.recipe.eval.suites]
    return {name: read_records(folder / f"{name}.parquet", Prompt) for name in names}


def counts_of(summary: Mapping[str, Any], names: Sequence[str]) -> dict[str, float | int]:
    """The numbers of a summary that a manifest repeats."""
    return {
        name: summary[name]
        for name in names
        if isinstance(summary.get(name), int | float) and not isinstance(summary.get(name), bool)
    }


def is_main_process() -> bool:
    """Whether this is the process, of several, that writes."""
    return os.environ.get("RANK", "0") == "0"
