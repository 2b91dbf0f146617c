"""The table of stages, in running order. A new stage is a file here and a line below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.pipeline.stage import Stage
from posttrain.pipeline.stages import (
    data,
    dpo,
    evaluate,
    judge,
    model,
    pairs,
    prune,
    report,
    rl,
    sft,
)
from posttrain.recipe.schema import Recipe

_REPORTED: tuple[Stage[Any], ...] = (
    model.STAGE,
    data.STAGE,
    evaluate.before_training(),
    judge.STAGE,
    prune.STAGE,
    sft.STAGE,
    evaluate.after(sft.STAGE),
    rl.STAGE,
    evaluate.after(rl.STAGE),
    pairs.STAGE,
    dpo.STAGE,
    evaluate.after(dpo.STAGE),
)
STAGES: tuple[Stage[Any], ...] = (*_REPORTED, report.report_on(*_REPORTED))


def stages_of(recipe: Recipe, table: Sequence[Stage[Any]] = STAGES) -> list[Stage[Any]]:
    """Return the stages that a recipe has, in order."""
    return [stage for stage in table if stage.section(recipe) is not None]
