"""Tables at the end of a run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from rich.text import Text

from posttrain.artefacts import EVALUATION, SuiteResult, read_evaluation
from posttrain.cli.tables import make_table, wide_console
from posttrain.pipeline import Finished
from posttrain.report.results import MACRO, result_rows, result_table, stage_table
from posttrain.run_directory import FinishedStage, RunDirectory
from posttrain.tables import DamagedFile


def show_results(done: Finished) -> None:
    """Print results, the time of each stage, and the report's place."""
    console = wide_console()
    place = RunDirectory(path=done.run_dir)
    stages = place.finished_stages()
    for suite, results in _suites(stages).items():
        rows = result_rows(results, stages)
        columns, cells = result_table(rows)
        sums = [at for at, row in enumerate(rows) if row.capability == MACRO]
        table = make_table(
            f"suite {suite}", columns, cells, left=["capability"], lines=sums, bold=sums
        )
        console.print(table)
    columns, cells = stage_table(stages)
    states = [
        "ran" if name in done.ran else "cached" if name in done.cached else "old" for name in stages
    ]
    this_time = [*states, f"{done.seconds:.1f} s"]
    cells = [[row[0], state, *row[1:]] for row, state in zip(cells, this_time, strict=True)]
    columns = [columns[0], "this time", *columns[1:]]
    console.print(
        make_table("stages", columns, cells, left=["this time", "counts"], lines=[len(stages) - 1])
    )
    if not done.ran:
        console.print(Text("nothing to do: every stage is finished"))
    if place.report.exists():
        console.print(Text(f"report: {_short(place.report)}"), soft_wrap=True)


def _suites(stages: dict[str, FinishedStage]) -> dict[str, dict[str, SuiteResult]]:
    """Return results by suite and point, in order, without damaged ones."""
    suites: dict[str, dict[str, SuiteResult]] = {}
    for name, stage in stages.items():
        if name.startswith(EVALUATION):
            with suppress(OSError, DamagedFile):
                for suite, result in read_evaluation(stage.path).suites.items():
                    suites.setdefault(suite, {})[name.removeprefix(EVALUATION)] = result
    return suites


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
