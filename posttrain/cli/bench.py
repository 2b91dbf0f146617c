"""`posttrain bench`: measure the engine on this machine, or read what a finished run took."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from posttrain.cli.options import AsJson, RecipeFile, Settings, load, print_json, telling_damage

if TYPE_CHECKING:
    from posttrain.bench.measure import Result

OutFolder = Annotated[
    Path | None,
    typer.Option("--out", metavar="FOLDER", help="Also write the result here: JSON and Markdown."),
]
NumRounds = Annotated[int, typer.Option("--rounds", min=1, help="Number of measured rounds.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory.")]


def add_to(app: typer.Typer) -> None:
    """Add the group `bench`."""
    bench = typer.Typer(
        help="Measure the engine on this machine, or a finished run.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    bench.command("engine")(bench_engine)
    bench.command("stages")(bench_stages)
    bench.command("results")(bench_results)
    app.add_typer(bench, name="bench")


def bench_engine(
    settings: Settings,
    recipe: RecipeFile = Path("quickstart.yaml"),
    out: OutFolder = None,
    num_prompts: Annotated[
        int, typer.Option("--prompts", min=1, help="Number of prompts in each round.")
    ] = 64,
    num_rounds: NumRounds = 7,
    as_json: AsJson = False,
) -> None:
    """Compare generation through posttrain with vLLM alone, on a recipe's prompts."""
    from posttrain.bench.engine import bench_engine as measure
    from posttrain.pipeline.environment import cache_dir

    loaded = load(recipe, settings)
    result = measure(loaded, cache_dir=cache_dir(), num_prompts=num_prompts, num_rounds=num_rounds)
    show_result(result, out, as_json)


def bench_stages(run_dir: RunArgument, out: OutFolder = None, as_json: AsJson = False) -> None:
    """Show the seconds and peak memory of a run's finished stages."""
    from posttrain.bench.runs import bench_stages as read

    with telling_damage(run_dir):
        result = read(run_dir)
    show_result(result, out, as_json)


def bench_results(run_dir: RunArgument, out: OutFolder = None, as_json: AsJson = False) -> None:
    """Show held-out pass rates after each stage of a run, with paired differences."""
    from posttrain.bench.runs import bench_results as read

    with telling_damage(run_dir):
        result = read(run_dir)
    show_result(result, out, as_json)


def show_result(result: Result, out: Path | None, as_json: bool) -> None:
    """Print a result, and write it to `out` where that is given."""
    from rich.text import Text

    from posttrain.bench.measure import write_result
    from posttrain.cli.tables import make_table, wide_console

    written = write_result(result, out) if out is not None else []
    if as_json:
        print_json(result.figures)
        return
    console = wide_console()
    rows = [[cell.strip("`") for cell in row] for row in result.rows]
    console.print(make_table(result.title, result.columns, rows, left=["capability", "counts"]))
    for line in [*result.notes, *(f"written: {path}" for path in written)]:
        console.print(Text(line))
