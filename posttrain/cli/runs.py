"""Commands that take a run directory: status, report, merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from posttrain.cli.options import AsJson, check_new_folder, print_json

if TYPE_CHECKING:
    from posttrain.recipe.models import Frozen

RunArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[RUN_DIR]", help="A run directory; the newest in runs/ if left out."),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (status, report, merge):
        app.command()(command)


def status(run_dir: RunArgument = None, as_json: AsJson = False) -> None:
    """Show how far a run is, and who works on it."""
    from posttrain.cli.status import show_status, status_values

    values = status_values(find_run(run_dir))
    if as_json:
        print_json(values)
    else:
        show_status(values)


def report(
    run_dir: RunArgument = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to; report.html in the run if left out.")
    ] = None,
) -> None:
    """Write the report of a run, finished or not, as one HTML file."""
    from posttrain.report import write_report

    folder = find_run(run_dir)
    typer.echo(write_report(folder, out or folder / "report.html"))


def merge(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that is not there yet.")],
    after: Annotated[
        Literal["sft", "rl", "dpo"] | None,
        typer.Option("--after", help="The policy of which stage; the last one if left out."),
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float32"] | None,
        typer.Option("--dtype", help="Of the weights; the base's own if left out."),
    ] = None,
) -> None:
    """Fold a run's adapter into its base: one plain Hugging Face checkpoint."""
    from posttrain.errors import RecipeError

    folder = find_run(run_dir)
    check_new_folder(out, command=f"posttrain merge {run_dir}")
    wanted = (after,) if after else ("dpo", "rl", "sft")
    found = [
        p for stage in wanted for p in folder.glob(f"stages/*-{stage}/policy") if _is(p, stage)
    ]
    if not found:
        raise RecipeError(
            f"{folder} holds no policy after {' or '.join(wanted)}",
            hint=f"posttrain status {folder}",
        )
    from posttrain.models import merge as merge_weights
    from posttrain.models import policy_in
    from posttrain.models.checkpoint import checkpoint_dtypes
    from posttrain.recipe.models import Frozen
    from posttrain.tables import read_json

    base = Path(read_json(next(folder.glob("stages/*-model/model.json")))["path"])
    kept = read_json(folder / "recipe.resolved.json")["model"].get("frozen")
    frozen = None if kept is None else Frozen.model_validate(kept)
    policy = policy_in(found[0], base=base, frozen=frozen)
    typer.echo(merge_weights(policy, out, dtype=dtype))
    if policy.adapter is not None:
        dtypes = ", ".join(sorted(checkpoint_dtypes(out)))
        typer.echo(f"merged in {dtypes}{_packing(frozen)}", err=True)


def _packing(frozen: Frozen | None) -> str:
    """What the adapter was added to, in words."""
    if frozen is None:
        return ""
    kinds = {"routed experts": frozen.experts, "linear layers": frozen.linears}
    packed = ", ".join(f"{kind} in {format}" for kind, format in kinds.items() if format)
    return f", into the weights it was trained on: {packed}, unpacked" if packed else ""


def _is(policy: Path, stage: str) -> bool:
    """Whether a policy folder is that of `stage` (and not, say, of eval-sft) and finished."""
    folder = policy.parent
    return folder.name.partition("-")[2] == stage and (folder / "MANIFEST.json").exists()


def find_run(asked: Path | None) -> Path:
    """The run directory that is meant; raises RecipeError where there is none."""
    from posttrain.errors import RecipeError
    from posttrain.pipeline.rundir import IDENTITY

    if asked is not None:
        if not (asked / IDENTITY).exists():
            raise RecipeError(
                f"{asked} is no run directory",
                hint="give the folder of a run: posttrain status runs/NAME",
            )
        return asked
    found = sorted(Path("runs").glob(f"*/{IDENTITY}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise RecipeError("there is no run in runs/", hint="posttrain run RECIPE")
    return found[-1].parent
