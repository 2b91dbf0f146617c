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
    """Show the state of a run's stages, and which process works on it."""
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
        str | None,
        typer.Option(
            "--after", metavar="STAGE", help="The policy of which stage; the last one if left out."
        ),
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float32"] | None,
        typer.Option("--dtype", help="Of the weights; the base's own if left out."),
    ] = None,
) -> None:
    """Merge a run's adapter into its base, as a Hugging Face model."""
    from posttrain.recipe.schema import training_stages
    from posttrain.run_directory import RunDirectory

    folder = find_run(run_dir)
    check_new_folder(out, command=f"posttrain merge {run_dir}")
    stages = training_stages()
    if after is not None and after not in stages:
        hint = f"posttrain merge {run_dir} {out} --after {' | '.join(stages)}"
        raise RecipeError(f"--after {after}: there is no such training stage", hint=hint)
    wanted = [after] if after is not None else stages[::-1]
    finished = RunDirectory(path=folder).finished_stages()
    name = next((name for name in wanted if name in finished), None)
    if name is None:
        raise RecipeError(
            f"{folder} holds no policy after {' or '.join(wanted)}",
            hint=f"posttrain status {folder}",
        )
    stage = finished[name].path
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
    """Return the base of a run's policies and how training stored it, all files verified."""
    from posttrain.artefacts import read_base_path
    from posttrain.recipe.models import Frozen
    from posttrain.run_directory import FileHashes, RunDirectory, verify_stage
    from posttrain.tables import read_json

    hint = f"run the same recipe again: posttrain run RECIPE --run-dir {run_dir}"
    place = RunDirectory(path=run_dir)
    hashes = FileHashes(place.hashes)
    model = place.find_stage("model")
    if model is None:
        raise RecipeError(f"{run_dir} has no model stage", hint=hint)
    for part in (model, stage):
        manifest, wrong = verify_stage(part, hashes)
        if manifest is None:
            raise RecipeError(f"{part} does not verify: {wrong}", hint=hint)
    base = read_base_path(model)
    if not (base / "config.json").exists():
        raise RecipeError(f"{base}, the base of {run_dir}, is no model: no config.json", hint=hint)
    resolved = place.resolved_recipe
    try:
        kept = read_json(resolved)["model"].get("frozen")
        return base, None if kept is None else Frozen.model_validate(kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(f"{resolved} cannot be read: {error}", hint=hint) from error


def _packing(frozen: Frozen | None) -> str:
    """Describe the weights that the adapter was trained on."""
    if frozen is None:
        return ""
    kinds = {"routed experts": frozen.experts, "linear layers": frozen.linears}
    packed = ", ".join(f"{kind} in {format}" for kind, format in kinds.items() if format)
    return f", into the weights it was trained on: {packed}, unpacked" if packed else ""


def find_run(asked: Path | None) -> Path:
    """Find a run directory; RecipeError if there is none."""
    from posttrain.run_directory import RunDirectory

    if asked is not None:
        if not RunDirectory(path=asked).identity.exists():
            raise RecipeError(
                f"{asked} is no run directory",
                hint="give the folder of a run: posttrain status runs/NAME",
            )
        return asked
    identities = [RunDirectory(path=path).identity for path in Path("runs").glob("*")]
    found = sorted((p for p in identities if p.exists()), key=lambda path: path.stat().st_mtime)
    if not found:
        raise RecipeError("there is no run in runs/", hint="posttrain run RECIPE")
    return found[-1].parent
