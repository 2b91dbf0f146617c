"""`posttrain bench`: what posttrain costs, measured here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from posttrain.bench.record import Result

app = typer.Typer(no_args_is_help=True, help="Measure what posttrain costs on this machine.")

Out = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for the result as JSON and Markdown.", file_okay=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


@app.command("cli")
def bench_cli(
    out: Out = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Processes per command.")] = 10,
    as_json: Json = False,
) -> None:
    """Time the quick commands as whole processes."""
    from posttrain.bench.latency import bench_latency

    _tell(bench_latency(num_runs=runs), out, as_json)


@app.command("engine")
def bench_engine(
    recipe: Annotated[Path, typer.Argument(help="Whose model, engine and RL prompts to use.")],
    out: Out = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Set a key: --set engine.max_num_seqs=64.")
    ] = None,
    prompts: Annotated[int, typer.Option("--prompts", min=1, help="Prompts per round.")] = 64,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds that count.")] = 7,
    as_json: Json = False,
) -> None:
    """Generate through posttrain and through vLLM by hand, in turns; tell the ratio."""
    from posttrain.bench.throughput import bench_engine as measure
    from posttrain.pipeline.steps.preparing import cache_dir
    from posttrain.recipe import load_recipe

    loaded = load_recipe(recipe, settings or [])
    result = measure(loaded, cache_dir=cache_dir(), num_prompts=prompts, num_rounds=rounds)
    _tell(result, out, as_json)


@app.command("stages")
def bench_stages(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Tell seconds and peak memory of a run's finished stages."""
    from posttrain.bench.stages import bench_stages as read

    _tell(read(run_dir), out, as_json)


def _tell(result: Result, out: Path | None, as_json: bool) -> None:
    import json

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from posttrain.bench.record import write_result

    written = write_result(result, out) if out is not None else []
    if as_json:
        print(json.dumps(result.figures, indent=2))
        return
    console = Console()
    table = Table(title=Text(result.title), title_justify="left")
    for i, column in enumerate(result.columns):
        table.add_column(Text(column), justify="left" if i == 0 else "right")
    for row in result.rows:
        table.add_row(*(Text(cell.strip("`")) for cell in row))
    console.print(table)
    for line in [*result.notes, *(f"written: {path}" for path in written)]:
        console.print(Text(line))
