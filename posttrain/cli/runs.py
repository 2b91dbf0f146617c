"""Commands that take a run directory: status, report, merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from posttrain.cli.options import AsJson, check_new_folder, new_folder, print_json, telling_damage
from posttrain.errors import RecipeError

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
    with telling_damage(folder):
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
    from posttrain.pipeline.manifest import NAME

    folder = find_run(run_dir)
    check_new_folder(out, command=f"posttrain merge {run_dir}")
    wanted = (after,) if after else ("dpo", "rl", "sft")
    found = [p.parent for stage in wanted for p in folder.glob(f"stages/[0-9]*-{stage}/{NAME}")]
    found = [stage for stage in found if stage.name.partition("-")[2] in wanted]  # no eval-sft
    if not found:
        raise RecipeError(
            f"{folder} holds no policy after {' or '.join(wanted)}",
            hint=f"posttrain status {folder}",
        )
    stage = found[0]
    base, frozen = _verified_base(folder, stage)
    from posttrain.models import merge as merge_weights
    from posttrain.models import policy_in
    from posttrain.models.checkpoint import checkpoint_dtypes

    policy = policy_in(stage / "policy", base=base, frozen=frozen)
    with new_folder(out) as temporary:
        merge_weights(policy, temporary, dtype=dtype)
        dtypes = ", ".join(sorted(checkpoint_dtypes(temporary)))
    typer.echo(out)
    packing = "" if policy.adapter is None else _packing(frozen)
    typer.echo(f"merged the policy of {stage.name} in {dtypes}{packing}", err=True)


def _verified_base(run_dir: Path, stage: Path) -> tuple[Path, Frozen | None]:
    """The base of a run's policies and how training kept it; all that merging reads is sound."""
    from posttrain.pipeline import FileHashes, RunDir
    from posttrain.pipeline.manifest import read_manifest
    from posttrain.recipe.models import Frozen
    from posttrain.tables import read_json

    hint = f"run the same recipe again: posttrain run RECIPE --run-dir {run_dir}"
    hashes = FileHashes(RunDir(path=run_dir).hashes)
    for part in (run_dir / "stages" / "1-model", stage):
        manifest, wrong = read_manifest(part, hashes)
        if manifest is None:
            raise RecipeError(f"{part} does not verify: {wrong}", hint=hint)
    base = Path(read_json(run_dir / "stages" / "1-model" / "model.json")["path"])
    if not (base / "config.json").exists():
        raise RecipeError(f"{base}, the base of {run_dir}, is no model: no config.json", hint=hint)
    resolved = run_dir / "recipe.resolved.json"
    try:
        kept = read_json(resolved)["model"].get("frozen")
        return base, None if kept is None else Frozen.model_validate(kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(f"{resolved} cannot be read: {error}", hint=hint) from error


def _packing(frozen: Frozen | None) -> str:
    """What the adapter was added to, in words."""
    if frozen is None:
        return ""
    kinds = {"routed experts": frozen.experts, "linear layers": frozen.linears}
    packed = ", ".join(f"{kind} in {format}" for kind, format in kinds.items() if format)
    return f", into the weights it was trained on: {packed}, unpacked" if packed else ""


def find_run(asked: Path | None) -> Path:
    """The run directory that is meant; raises RecipeError where there is none."""
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
