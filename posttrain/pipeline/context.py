"""What a stage's function is given and gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from posttrain.recipe import CurriculumSpec, JudgeSpec
from posttrain.recipe.judges import RubricJudge
from posttrain.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class StageContext:
    """Everything that a stage's function is given."""

    stage: str
    key: str
    recipe: Recipe
    recipe_path: Path
    judge: JudgeSpec | None
    rubric: RubricJudge | None
    """answer_judge's."""
    curriculum: CurriculumSpec | None
    run_dir: Path
    seed: int
    """The stage's own, derived from recipe.seed; all evaluations share one."""
    inputs: Mapping[str, Path]
    """Upstream stage -> its finished directory; a stage that the recipe leaves out is not here."""
    work_dir: Path
    """Kept until the stage is finished: checkpoints, ledgers."""
    out_dir: Path
    """Empty at first; becomes the stage's directory by one rename."""


Counts = Mapping[str, float | int]
"""What a stage counted, for its manifest: rows, tokens, steps."""
