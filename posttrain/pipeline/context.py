"""What a stage is: its row in the table, and what its function is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from posttrain.artefacts import POLICY, read_base_path
from posttrain.progress import is_main_process
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.schema import Recipe
from posttrain.run_directory import SUMMARY
from posttrain.tables import write_json

if TYPE_CHECKING:
    from posttrain.models import PolicyPath

Section = TypeVar("Section")
Counts = Mapping[str, float | int]
"""Rows, tokens and steps of a stage, for its manifest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageContext:
    """Everything that a stage's function is given besides its section of the recipe."""

    stage: str
    key: str
    recipe: Recipe
    recipe_path: Path
    run_dir: Path
    seed: int
    """The stage's own, derived from recipe.seed; all evaluations share one."""
    inputs: Mapping[str, Path]
    """Upstream stage -> its finished directory, in the table's order; without those that the recipe
    leaves out."""
    work_dir: Path
    """Kept until the stage is finished: checkpoints, ledgers."""
    out_dir: Path
    """Empty at first; becomes the stage's directory by one rename."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Upper bounds for a stage, before anything is run; None where only loading would tell."""

    rows: Mapping[str, int | None] = field(default_factory=dict[str, int | None])
    tokens: Mapping[str, int | None] = field(default_factory=dict[str, int | None])
    judge_calls: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage(Generic[Section]):
    """One row of the table of stages."""

    name: str
    version: int
    """Raised whenever the same inputs would give other artefacts than before."""
    section: Callable[[Recipe], Section | None]
    """The part of the recipe that the stage works by; None where the recipe does without it."""
    run: Callable[[StageContext, Section], Counts]
    """Write the artefacts to out_dir; the counts go to the manifest."""
    reads: tuple[str, ...] = ()
    """Upstream stages, in the table's order, those that the recipe leaves out included."""
    depends_on: Callable[[LoadedRecipe, Section], Mapping[str, Any]] = field(
        default=lambda _loaded, _section: {}
    )
    """The recipe's values that the artefacts depend on."""
    files: Callable[[LoadedRecipe], Mapping[str, Path]] = field(default=lambda _: {})
    """Label -> input file or model folder whose content the artefacts depend on."""
    estimate: Callable[[Recipe, Section, Mapping[str, int | None]], Estimate] = field(
        default=lambda _recipe, _section, _rows: Estimate()
    )
    """Work to expect, given the rows of `sft` and `rl`."""
    is_seeded: bool = True
    is_training: bool = False
    """Writes a policy; started once per process of launch.num_processes."""
    seed_name: str | None = None
    """Stages with the same one share their seed; the stage's own name where left out."""


def finish(context: StageContext, summary: Mapping[str, Any], counts: Sequence[str]) -> Counts:
    """Write summary.json; return those of `counts` that are numbers."""
    if is_main_process():
        write_json(context.out_dir / SUMMARY, dict(summary))
    return {
        name: summary[name]
        for name in counts
        if isinstance(summary.get(name), int | float) and not isinstance(summary.get(name), bool)
    }


def starting_policy(context: StageContext) -> PolicyPath:
    """Return the policy of the last training stage among the inputs; the base without any."""
    from posttrain.models import PolicyPath, policy_in

    base = read_base_path(context.inputs["model"])
    frozen = context.recipe.model.frozen
    folder = last_policy(context)
    return (
        PolicyPath(base=base, frozen=frozen)
        if folder is None
        else policy_in(folder, base=base, frozen=frozen)
    )


def last_policy(context: StageContext) -> Path | None:
    """Return the policy folder of the last training stage among the inputs; None without any."""
    folders = [path / POLICY for path in context.inputs.values()]
    return next((folder for folder in reversed(folders) if folder.is_dir()), None)
