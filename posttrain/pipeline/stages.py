"""The table of stages: what each reads, which parts of the recipe and of the code it depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.pipeline import parts
from posttrain.pipeline.context import Counts, StageContext
from posttrain.pipeline.steps import judging, measuring, preparing, reporting, training
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One row of the table."""

    name: str
    number: int
    function: Callable[[StageContext], Counts]
    """Writes the artefacts to out_dir; the counts go to the manifest."""
    reads: tuple[str, ...] = ()
    """Upstream stages, those that the recipe leaves out included."""
    part: Callable[[LoadedRecipe], Mapping[str, Any]] = field(default=lambda _: {})
    """The values of recipe, judge and curriculum file that the artefacts depend on."""
    files: Callable[[LoadedRecipe], Mapping[str, Path]] = field(default=lambda _: {})
    """Label -> input file or model folder whose content the artefacts depend on."""
    modules: tuple[str, ...] = ()
    """Modules and packages whose source the artefacts depend on."""
    is_wanted: Callable[[Recipe], bool] = lambda _: True
    is_seeded: bool = True
    is_training: bool = False
    """Started once per process of launch.num_processes."""
    seed_name: str | None = None
    """Stages with the same one share their seed; the stage's own name where left out."""


def stages_of(recipe: Recipe, table: Sequence[Stage]) -> list[Stage]:
    """The stages that a recipe has, in order."""
    return [stage for stage in table if stage.is_wanted(recipe)]


GROUND = ("posttrain.records", "posttrain.tables")
SCORING = (
    *("posttrain.rewards", "posttrain.engines", "posttrain.models"),
    # What decides answers that a model judges.
    *("posttrain.judge.answers", "posttrain.judge.auc", "posttrain.judge.calibration"),
    *("posttrain.judge.quoting", "posttrain.judge.rubric", "posttrain.pipeline.steps.answering"),
)
STEPS = "posttrain.pipeline.steps"


def _evaluation(point: str, number: int) -> Stage:
    policy = () if point == "base" else (point,)

    def is_wanted(recipe: Recipe) -> bool:
        return point in recipe.eval.after and (
            point == "base" or getattr(recipe, point) is not None
        )

    return Stage(
        name=f"eval-{point}",
        number=number,
        function=measuring.evaluate_policy,
        reads=("model", "data", *policy),
        part=parts.evaluation,
        files=parts.answer_judge_files,
        modules=(
            *GROUND,
            *SCORING,
            "posttrain.evaluate",
            "posttrain.metrics",
            f"{STEPS}.measuring",
        ),
        is_wanted=is_wanted,
        seed_name="eval",
    )


STAGES: tuple[Stage, ...] = (
    Stage(
        name="model",
        number=1,
        function=preparing.prepare_model,
        part=parts.model,
        files=parts.model_files,
        modules=("posttrain.models.base", "posttrain.models.upcycle", f"{STEPS}.preparing"),
        is_seeded=False,
    ),
    Stage(
        name="data",
        number=2,
        function=preparing.prepare_data,
        part=parts.data,
        files=parts.data_files,
        modules=(*GROUND, "posttrain.data", "posttrain.rewards", f"{STEPS}.preparing"),
    ),
    _evaluation("base", 3),
    Stage(
        name="judge",
        number=4,
        function=judging.judge,
        reads=("model", "data"),
        part=parts.judge,
        files=parts.answer_judge_files,
        modules=(*GROUND, *SCORING, "posttrain.judge", f"{STEPS}.judging"),
        is_wanted=lambda recipe: recipe.sft is not None and recipe.sft.judge is not None,
    ),
    Stage(
        name="prune",
        number=5,
        function=judging.prune,
        reads=("data", "judge"),
        part=parts.prune,
        modules=(
            *GROUND,
            "posttrain.prune",
            "posttrain.judge",
            # Whether the judge earned its right is a matter of statistics.
            "posttrain.metrics",
            f"{STEPS}.judging",
        ),
        is_wanted=lambda recipe: recipe.sft is not None and recipe.sft.judge is not None,
        is_seeded=False,
    ),
    Stage(
        name="sft",
        number=6,
        function=training.train_sft,
        reads=("model", "data", "prune"),
        part=parts.sft,
        modules=(
            *GROUND,
            "posttrain.models",
            "posttrain.lengths",
            "posttrain.training",
            "posttrain.sft",
            f"{STEPS}.training",
        ),
        is_wanted=lambda recipe: recipe.sft is not None,
        is_training=True,
    ),
    _evaluation("sft", 7),
    Stage(
        name="rl",
        number=8,
        function=training.train_rl,
        reads=("model", "data", "judge", "sft"),
        part=parts.rl,
        files=parts.answer_judge_files,
        modules=(
            *GROUND,
            *SCORING,
            "posttrain.data",
            "posttrain.curriculum",
            "posttrain.training",
            "posttrain.rl",
            f"{STEPS}.training",
        ),
        is_wanted=lambda recipe: recipe.rl is not None,
        is_training=True,
    ),
    _evaluation("rl", 9),
    Stage(
        name="pairs",
        number=10,
        function=training.mine,
        reads=("data", "rl"),
        part=parts.pairs,
        modules=(*GROUND, "posttrain.preferences", f"{STEPS}.training"),
        is_wanted=lambda recipe: recipe.dpo is not None,
    ),
    Stage(
        name="dpo",
        number=11,
        function=training.train_dpo,
        reads=("model", "rl", "pairs"),
        part=parts.dpo,
        modules=(
            *GROUND,
            "posttrain.models",
            "posttrain.lengths",
            "posttrain.training",
            "posttrain.dpo",
            f"{STEPS}.training",
        ),
        is_wanted=lambda recipe: recipe.dpo is not None,
        is_training=True,
    ),
    _evaluation("dpo", 12),
    Stage(
        name="report",
        number=13,
        function=reporting.report,
        reads=(
            *("model", "data", "eval-base", "judge", "prune", "sft", "eval-sft"),
            *("rl", "eval-rl", "pairs", "dpo", "eval-dpo"),
        ),
        modules=(*GROUND, "posttrain.report", "posttrain.metrics", f"{STEPS}.reporting"),
        is_seeded=False,
    ),
)
