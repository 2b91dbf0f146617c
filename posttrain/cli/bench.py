"""`posttrain bench`: what posttrain costs, measured here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from posttrain.cli.options import AsJson, RecipeFile, Settings, load, print_json, telling_damage
from posttrain.errors import RecipeError

if TYPE_CHECKING:
    from posttrain.bench.record import Result

OutFolder = Annotated[
    Path | None,
    typer.Option("--out", metavar="FOLDER", help="Also write the result there: JSON, Markdown."),
]


def add_to(app: typer.Typer) -> None:
    """Add the group `bench`."""
    bench = typer.Typer(
        help="Measure what posttrain costs.", no_args_is_help=True, rich_markup_mode=None
    )
    bench.command("cli")(bench_cli)
    bench.command("engine")(bench_engine)
    bench.command("experts")(bench_experts)
    bench.command("verify")(bench_verify)
    bench.command("stages")(bench_stages)
    bench.command("results")(bench_results)
    bench.command("curriculum")(bench_curriculum)
    bench.command("curriculum-size")(bench_curriculum_size)
    app.add_typer(bench, name="bench")


def bench_cli(
    out: OutFolder = None,
    num_runs: Annotated[int, typer.Option("--runs", min=1, help="Of each command.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Time the quick commands as whole processes."""
    from posttrain.bench.latency import bench_latency

    _tell(bench_latency(num_runs=num_runs), out, as_json)


def bench_engine(
    settings: Settings,
    recipe: RecipeFile = Path("quickstart.yaml"),
    out: OutFolder = None,
    num_prompts: Annotated[int, typer.Option("--prompts", min=1, help="In each round.")] = 64,
    num_rounds: Annotated[int, typer.Option("--rounds", min=1, help="That count.")] = 7,
    as_json: AsJson = False,
) -> None:
    """Generate through posttrain and through vLLM by hand, in turns; tell the ratio."""
    from posttrain.bench.throughput import bench_engine as measure
    from posttrain.pipeline.environment import cache_dir

    loaded = load(recipe, settings)
    result = measure(loaded, cache_dir=cache_dir(), num_prompts=num_prompts, num_rounds=num_rounds)
    _tell(result, out, as_json)


def bench_experts(
    out: OutFolder = None,
    device: Annotated[Literal["cpu", "cuda"] | None, typer.Option(help="What it runs on.")] = None,
    num_rounds: Annotated[int, typer.Option("--rounds", min=1, help="That count.")] = 5,
    only: Annotated[
        Literal["errors", "packed", "contenders", "sweep"] | None,
        typer.Option(help="One part, on the CPU."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train LoRA on routed experts in six ways, in turns; tell times, memory and errors."""
    import torch

    from posttrain.bench.expert_suite import expert_results

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    for result in expert_results(device=place, num_rounds=num_rounds, only=only):
        _tell(result, out, as_json)


def bench_verify(
    out: OutFolder = None,
    only: Annotated[
        Literal["speed", "hung", "maths", "attacks", "forgeries", "code"] | None,
        typer.Option(help="One part."),
    ] = None,
    num_rounds: Annotated[int, typer.Option("--rounds", min=1, help="That count.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Verifiers: speed, hung answers, agreement with people, attacks, forged and honest code."""
    from posttrain.bench.verify_suite import verify_results

    for result in verify_results(num_rounds=num_rounds, only=only):
        _tell(result, out, as_json)


def bench_stages(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory.")],
    out: OutFolder = None,
    as_json: AsJson = False,
) -> None:
    """Tell seconds and peak memory of a run's finished stages."""
    from posttrain.bench.stages import bench_stages as read

    with telling_damage(run_dir):
        result = read(run_dir)
    _tell(result, out, as_json)


def bench_results(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory.")],
    out: OutFolder = None,
    as_json: AsJson = False,
) -> None:
    """Tell what each stage of a run did to held-out pass rates, with paired differences."""
    from posttrain.bench.results import bench_results as read

    with telling_damage(run_dir):
        result = read(run_dir)
    _tell(result, out, as_json)


def bench_curriculum(
    out: OutFolder = None,
    bed: Annotated[
        Literal["simulated", "real"],
        typer.Option(
            "--bed",
            help="What learns: simulated learners, or nano Llama 4 models, for real.",
        ),
    ] = "simulated",
    num_seeds: Annotated[int, typer.Option("--seeds", min=1, help="Paired over arms.")] = 8,
    first_seed: Annotated[int, typer.Option("--first-seed", min=0)] = 0,
    num_processes: Annotated[
        int, typer.Option("--processes", min=1, help="Of the simulated bed.")
    ] = 2,
    pools: Annotated[
        list[str] | None, typer.Option("--pool", help="Only this pool; may be repeated.")
    ] = None,
    arms: Annotated[
        list[str] | None,
        typer.Option("--arm", help="Real bed: only uniform and this arm; may be repeated."),
    ] = None,
    finished: Annotated[
        bool, typer.Option("--finished", help="Real bed: run nothing, tell of finished runs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train learners under every curriculum; tell what each saves against uniform.

    Goes on where it stopped: finished runs are kept in <out>/curriculum-<bed>.jsonl.
    """
    seeds = range(first_seed, first_seed + num_seeds)
    with tempfile.TemporaryDirectory() as scratch:
        ledger = (out or Path(scratch)) / f"curriculum-{bed}.jsonl"
        if bed == "real":
            result, rows = _on_real_learners(ledger, seeds, pools, arms, finished=finished)
        else:
            for option, given in (("--arm", arms), ("--finished", finished)):
                if given:
                    raise RecipeError(
                        f"{option} belongs to the real bed",
                        hint=f"add --bed real, or leave {option} out",
                    )
            result, rows = _on_simulated_learners(ledger, seeds, pools, num_processes)
    _tell(result, out, as_json)
    if out is not None:
        from posttrain.bench.bed_plots import write_plots

        write_plots(rows, out, f"curriculum-{bed}")


def bench_curriculum_size(
    out: OutFolder = None,
    num_prompts: Annotated[
        int, typer.Option("--prompts", min=2048, help="In the pool.")
    ] = 1_000_000,
    num_rounds: Annotated[int, typer.Option("--rounds", min=1, help="That count.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Time a curriculum's calls where the pool is large, and weigh its state."""
    from posttrain.bench.curriculum_size import bench_curriculum_size as measure

    _tell(measure(num_prompts=num_prompts, num_rounds=num_rounds), out, as_json)


def _on_simulated_learners(
    ledger: Path, seeds: range, pools: list[str] | None, num_processes: int
) -> tuple[Result, list[dict[str, Any]]]:
    from posttrain.bench.sim_pools import POOLS
    from posttrain.bench.sim_report import simulated_result
    from posttrain.bench.sim_suite import run_suite

    _check_names("pool", pools, POOLS)
    rows = run_suite(ledger, seeds=seeds, pools=pools or list(POOLS), num_processes=num_processes)
    return simulated_result(rows), rows


def _on_real_learners(
    ledger: Path,
    seeds: range,
    pools: list[str] | None,
    arms: list[str] | None,
    *,
    finished: bool,
) -> tuple[Result, list[dict[str, Any]]]:
    from posttrain.bench.real_report import finished_rows, real_result
    from posttrain.bench.real_specs import REAL_POOLS
    from posttrain.bench.real_suite import real_arms, run_real_suite
    from posttrain.pipeline.environment import cache_dir

    _check_names("pool", pools, REAL_POOLS)
    _check_names("arm", arms, real_arms())
    pools, arms = pools or list(REAL_POOLS), arms or list(real_arms())
    if finished:
        rows = finished_rows(ledger, seeds=seeds, pools=pools, arms=arms)
    else:
        cache = cache_dir() / "bench-curriculum"
        rows = run_real_suite(ledger, seeds=seeds, pools=pools, arms=arms, cache=cache)
    return real_result(rows), rows


def _check_names(what: str, given: list[str] | None, known: Iterable[str]) -> None:
    names = list(known)
    if unknown := [name for name in given or [] if name not in names]:
        raise RecipeError(
            f"no {what} {unknown[0]!r}", hint="one of: " + "; ".join(f"'{name}'" for name in names)
        )


def _tell(result: Result, out: Path | None, as_json: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from posttrain.bench.record import write_result
    from posttrain.cli.results import wide_console

    written = write_result(result, out) if out is not None else []
    if as_json:
        print_json(result.figures)
        return
    console = wide_console()
    table = Table(title=Text(result.title), title_justify="left")
    for i, column in enumerate(result.columns):
        table.add_column(Text(column), justify="left" if i == 0 else "right")
    for row in result.rows:
        table.add_row(*(Text(cell.strip("`")) for cell in row))
    console.print(table)
    for line in [*result.notes, *(f"written: {path}" for path in written)]:
        console.print(Text(line))
