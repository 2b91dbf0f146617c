"""Arguments and checks that several commands share."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from posttrain.recipe import LoadedRecipe

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")
]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key: --set rl.trainer.max_steps=5",
        default_factory=list,
        show_default=False,
    ),
]
RunFolder = Annotated[
    Path | None,
    typer.Option("--run-dir", metavar="FOLDER", help="Where the run lives; runs/NAME if left out."),
]
DeviceList = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="NxMgb",
        help="Plan for these, as 8x80gb; the CUDA devices at hand if left out.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Go on though the memory does not suffice.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def load(recipe: Path, settings: Sequence[str]) -> LoadedRecipe:
    """Load and check a recipe; print its warnings."""
    from posttrain.recipe import RecipeProblems, load_recipe

    try:
        loaded = load_recipe(recipe, settings)
    except RecipeProblems as error:
        error.hint = error.hint.replace("RECIPE", shlex.quote(str(recipe)))
        raise
    for problem in loaded.notes:
        typer.echo(f"warning: {problem}", err=True)
    return loaded


def run_folder(loaded: LoadedRecipe, asked: Path | None) -> Path:
    """Return the run directory of a recipe."""
    return asked or Path("runs") / str(loaded.recipe.name)


def print_json(value: Any) -> None:
    """Print a value as JSON for other programs."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def check_new_folder(out: Path, *, command: str) -> None:
    """Raise RecipeError if a folder is there and not empty."""
    from posttrain.errors import RecipeError

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError(f"{out} is already there", hint=f"{command} ANOTHER_FOLDER")


@contextmanager
def telling_damage(run_dir: Path) -> Generator[None, None, None]:
    """Raise RecipeError that names a run's file if it cannot be read."""
    from posttrain.errors import RecipeError
    from posttrain.tables import DamagedFile

    try:
        yield
    except (DamagedFile, OSError) as error:
        raise RecipeError(
            str(error), hint=f"make it anew: posttrain run RECIPE --run-dir {run_dir}"
        ) from error


@contextmanager
def new_folder(out: Path) -> Generator[Path, None, None]:
    """Yield a folder beside `out` that becomes `out` on success and is deleted on failure."""
    out = out.resolve()
    temporary = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
