"""The tables at the end of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.artefacts import EVALUATION, EvaluationResult, read_evaluation
from posttrain.pipeline import Finished
from posttrain.report.read import MACRO
from posttrain.report.results import ResultRow, result_rows
from posttrain.run_directory import FinishedStage, RunDirectory
from posttrain.tables import DamagedFile

WIDTH_OF_FILES = 110


def show_results(done: Finished) -> None:
    """Print what the evaluations found, how long each stage took, and where the report is."""
    console = wide_console()
    place = RunDirectory(path=done.run_dir)
    stages = place.finished_stages()
    results = _results(stages)
    for suite in dict.fromkeys(name for result in results.values() for name in result.suites):
        console.print(_suite_table(suite, result_rows(suite, results, stages)))
    console.print(_stage_table(stages, done))
    if not done.ran:
        console.print(Text("nothing to do: every stage is finished"))
    if place.report.exists():
        console.print(Text(f"report: {_short(place.report)}"), soft_wrap=True)


def wide_console() -> Console:
    """A console that is wide enough for the tables where it is no terminal, whose width counts."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, WIDTH_OF_FILES))


def _results(stages: Mapping[str, FinishedStage]) -> dict[str, EvaluationResult]:
    """Return the evaluations by point, in order, without damaged ones."""
    found: dict[str, EvaluationResult] = {}
    for name, stage in stages.items():
        if name.startswith(EVALUATION):
            with suppress(OSError, DamagedFile):
                found[name.removeprefix(EVALUATION)] = read_evaluation(stage.path)
    return found


def _suite_table(suite: str, rows: Sequence[ResultRow]) -> Table:
    ks = sorted({k for row in rows for k in row.pass_at_k})
    table = Table(title=Text(f"suite {suite}"), title_justify="left")
    table.add_column("stage", no_wrap=True)
    table.add_column("capability", no_wrap=True)
    numeric = ["pass@1 [95 %]", *(f"pass@{k}" for k in ks), "constant", "tokens", "seconds"]
    for name in numeric:
        table.add_column(name, justify="right", no_wrap=True)
    shown = ""
    for row in rows:
        interval = row.pass_at_1
        is_last = row.capability == MACRO
        cells = [
            "" if row.point == shown else row.point,
            row.capability,
            f"{_share(interval.mean)} [{_share(interval.low)}, {_share(interval.high)}]",
            *(_share(row.pass_at_k.get(k, math.nan)) for k in ks),
            _share(row.constant),
            "" if row.tokens is None else f"{row.tokens:,}",
            "" if row.seconds is None else f"{row.seconds:.1f}",
        ]
        style = "bold" if is_last else ""
        table.add_row(*(Text(cell, style=style) for cell in cells), end_section=is_last)
        shown = row.point
    return table


def _stage_table(stages: Mapping[str, FinishedStage], done: Finished) -> Table:
    table = Table(title=Text("stages"), title_justify="left", show_footer=True)
    manifests = [stage.manifest for stage in stages.values()]
    total = sum(manifest.seconds for manifest in manifests)
    most = max((m.peak_rss_bytes for m in manifests if m.peak_rss_bytes), default=None)
    table.add_column("stage", footer="all")
    table.add_column("this time", footer=f"{done.seconds:.1f} s")
    table.add_column("seconds", justify="right", footer=f"{total:.1f}")
    table.add_column("peak GiB", justify="right", footer=_gib(most))
    table.add_column("counts")
    for manifest in manifests:
        name = manifest.stage
        counts = ", ".join(f"{v:,} {key.replace('_', ' ')}" for key, v in manifest.counts.items())
        state = "ran" if name in done.ran else "cached" if name in done.cached else "old"
        cells = (name, state, f"{manifest.seconds:.1f}", _gib(manifest.peak_rss_bytes), counts)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _gib(size: int | None) -> str:
    return f"{size / 2**30:.2f}" if size else ""


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
