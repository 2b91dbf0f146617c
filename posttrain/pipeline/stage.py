"""Define a stage: its row in the table, and the context that its function gets."""

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
"""Rows, tokens and steps by name, for the manifest of a stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageContext:
    """Everything that a stage's function needs besides its section of the recipe."""

    stage: str
    key: str
    recipe: Recipe
    recipe_path: Path
    run_dir: Path
    seed: int
    """Seed of the stage, derived from recipe.seed; all evaluations share one."""
    inputs: Mapping[str, Path]
    """Finished directories of upstream stages by name, in the table's order; stages that the recipe
    leaves out are missing."""
    work_dir: Path
    """Directory for checkpoints and ledgers; kept until the stage is finished."""
    out_dir: Path
    """Directory to write to, empty at first; renamed to the stage's directory at the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Upper bounds for a stage before the run; None if only loading the data would tell."""

    rows: Mapping[str, int | None] = field(default_factory=dict[str, int | None])
    tokens: Mapping[str, int | None] = field(default_factory=dict[str, int | None])
    judge_calls: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage(Generic[Section]):
    """One row of the table of stages."""

    name: str
    version: int
    """Number to raise when the same inputs give other artefacts than before."""
    section: Callable[[Recipe], Section | None]
    """Section of the recipe that the stage reads; None if the recipe leaves the stage out."""
    run: Callable[[StageContext, Section], Counts]
    """Function that writes the artefacts to out_dir and returns counts for the manifest."""
    reads: tuple[str, ...] = ()
    """Upstream stages in the table's order, including those that the recipe leaves out."""
    depends_on: Callable[[LoadedRecipe, Section], Mapping[str, Any]] = field(
        default=lambda _loaded, _section: {}
    )
    """Values of the recipe that decide the artefacts; they are part of the key."""
    files: Callable[[LoadedRecipe], Mapping[str, Path]] = field(default=lambda _: {})
    """Input files and model folders by recipe key; their content is part of the key."""
    estimate: Callable[[Recipe, Section, Mapping[str, int | None]], Estimate] = field(
        default=lambda _recipe, _section, _rows: Estimate()
    )
    """Expected work, given the rows of `sft` and `rl`."""
    is_seeded: bool = True
    loads_models: bool = False
    """True for stages that import torch, TRL or vLLM; they are forked from warm.py's process."""
    is_training: bool = False
    """True for stages that train a policy: they run in launch.num_processes processes."""
    seed_name: str | None = None
    """Name that the seed is derived from; left out, the stage's own."""


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
