"""Commands that take a recipe: init, check, schema, plan, run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from posttrain.cli.options import (
    AsJson,
    DeviceList,
    Force,
    RecipeFile,
    RunFolder,
    Settings,
    load,
    print_json,
    run_folder,
)


def add_to(app: typer.Typer) -> None:
    """Add the commands, in the order in which one needs them."""
    for command in (init, check, plan, run, schema):
        app.command()(command)


def init(
    recipe: Annotated[Path, typer.Argument(metavar="FILE", help="The recipe to write.")] = Path(
        "starter.yaml"
    ),
    source: Annotated[
        str, typer.Option("--from", metavar="NAME", help="The shipped recipe to start from.")
    ] = "starter",
) -> None:
    """Write a recipe to start from, with its schema for editors."""
    from posttrain.errors import RecipeError
    from posttrain.recipe import recipe_json_schema, shipped_files
    from posttrain.tables import write_bytes, write_json

    shipped = {path.stem: path for path in shipped_files("recipes")}
    found = shipped.get(source.removesuffix(".yaml"))
    if found is None:
        raise RecipeError(
            f"no shipped recipe is called {source}",
            hint=f"posttrain init {recipe} --from {' | '.join(shipped)}",
        )
    if recipe.is_dir():
        recipe = recipe / found.name
    if recipe.exists():
        raise RecipeError(f"{recipe} is already there", hint="posttrain init ANOTHER.yaml")
    text = found.read_text(encoding="utf-8")
    text = re.sub(rf"(recipes/)?{re.escape(found.name)}", lambda _: str(recipe), text)
    write_bytes(recipe, text.encode())
    beside = recipe.parent / "schema.json"
    if not beside.exists():
        write_json(beside, recipe_json_schema())
    typer.echo(f"wrote {recipe}; next: posttrain check {recipe}")


def check(recipe: RecipeFile, settings: Settings, as_json: AsJson = False) -> None:
    """Check a recipe: every error at once, with file, line and key."""
    from dataclasses import asdict

    from posttrain.recipe import RecipeProblems

    try:
        loaded = load(recipe, settings)
    except RecipeProblems as error:
        if as_json:
            print_json({"ok": False, "problems": [asdict(p) for p in error.problems]})
        raise
    if as_json:
        notes = [asdict(problem) for problem in loaded.notes]
        print_json({"ok": True, "name": loaded.recipe.name, "notes": notes})
        return
    typer.echo(f"{recipe} is sound; next: posttrain plan {recipe}")


def schema(
    kind: Annotated[
        Literal["recipe", "judge", "curriculum"], typer.Argument(help="Of which kind of file.")
    ] = "recipe",
    as_json: AsJson = True,
) -> None:
    """Print the JSON schema of recipes, judges or curricula."""
    from posttrain.recipe import recipe_json_schema

    del as_json  # it is JSON anyway; the option is there because every read-only verb has it
    print_json(recipe_json_schema(kind))


def plan(
    recipe: RecipeFile,
    settings: Settings,
    run_dir: RunFolder = None,
    devices: DeviceList = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do: what is cached, rows, tokens, memory.

    Ends with code 3 where a stage does not fit the devices.
    """
    from posttrain.cli.plan import plan_values, show_plan
    from posttrain.memory import parse_devices
    from posttrain.pipeline.fit import check_fit, devices_here

    loaded = load(recipe, settings)
    there = devices_here() if devices is None else parse_devices(devices)
    values = plan_values(loaded, run_folder(loaded, run_dir), there)
    if as_json:
        print_json(values)
    else:
        show_plan(values)
    if not force:
        asked = "" if devices is None else f" --devices {devices}"
        check_fit(values["memory"], f"posttrain plan {recipe}{asked}")


def run(
    recipe: RecipeFile,
    settings: Settings,
    run_dir: RunFolder = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")
    ] = None,
    force: Force = False,
) -> None:
    """Run a recipe; run it again to resume. Finished stages are not run twice."""
    from posttrain.cli.plan import known_base
    from posttrain.cli.status import show_results
    from posttrain.pipeline import run as run_stages
    from posttrain.pipeline.fit import check_fit, devices_here, memory_values
    from posttrain.run_directory import RunDirectory

    loaded = load(recipe, settings)
    folder = run_folder(loaded, run_dir)
    there = devices_here()
    if there is not None and not force:
        base = known_base(loaded, RunDirectory(path=folder.resolve()))
        check_fit(memory_values(loaded.recipe, base, there), f"posttrain run {recipe}")
    done = run_stages(loaded, folder, until=until)
    show_results(done)
