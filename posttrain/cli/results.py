"""The tables at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.pipeline import Finished
from posttrain.report.read import EVAL_POINTS, MACRO, read_facts
from posttrain.report.rows import result_rows
from posttrain.tables import read_json

WIDTH_OF_FILES = 110


def show_results(done: Finished) -> None:
    """Print what the evaluations found, how long each stage took, and where the report is."""
    console = wide_console()
    summaries = read_summaries(done.run_dir)
    suites = dict.fromkeys(name for s in summaries.values() for name in s["suites"])
    for suite in suites:
        console.print(_suite_table(suite, summaries, read_manifests(done.run_dir)))
    console.print(_stage_table(read_manifests(done.run_dir), done))
    if not done.ran:
        console.print(Text("nothing to do: every stage is finished"))
    report = done.run_dir / "report.html"
    if report.exists():
        console.print(Text(f"report: {_short(report)}"), soft_wrap=True)


def wide_console() -> Console:
    """A console that is wide enough for the tables where it is no terminal, whose width counts."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, WIDTH_OF_FILES))


def read_summaries(run_dir: Path) -> dict[str, Mapping[str, Any]]:
    """Point (`base`, `sft`, ...) -> the evaluation's summary, in order; none of damaged ones."""
    found: dict[str, Mapping[str, Any]] = {}
    for point in EVAL_POINTS:
        for path in run_dir.glob(f"stages/*-eval-{point}/summary.json"):
            with suppress(OSError, ValueError):
                found[point] = read_json(path)
    return found


def read_manifests(run_dir: Path) -> dict[str, Mapping[str, Any]]:
    """Stage -> its manifest, in order; none of those that cannot be read."""
    folders = sorted(
        run_dir.glob("stages/[0-9]*-*/MANIFEST.json"),
        key=lambda path: int(path.parent.name.partition("-")[0]),
    )
    manifests = [read_facts(path.parent) for path in folders]
    return {manifest["stage"]: manifest for manifest in manifests if manifest is not None}


def _suite_table(
    suite: str, summaries: Mapping[str, Mapping[str, Any]], manifests: Mapping[str, Any]
) -> Table:
    rows = list(result_rows(suite, summaries, manifests))
    ks = sorted({k for row in rows for k in row["pass@k"]}, key=int)
    table = Table(title=Text(f"suite {suite}"), title_justify="left")
    table.add_column("stage", no_wrap=True)
    table.add_column("capability", no_wrap=True)
    numeric = ["pass@1 [95 %]", *(f"pass@{k}" for k in ks), "constant", "tokens", "seconds"]
    for name in numeric:
        table.add_column(name, justify="right", no_wrap=True)
    shown = ""
    for row in rows:
        interval = row["pass@1"]
        is_last = row["capability"] == MACRO
        cells = [
            "" if row["stage"] == shown else row["stage"],
            row["capability"],
            f"{_share(interval['mean'])} [{_share(interval['low'])}, {_share(interval['high'])}]",
            *(_share(row["pass@k"].get(k)) for k in ks),
            _share(row["constant"]),
            "" if row["tokens"] is None else f"{row['tokens']:,}",
            "" if row["seconds"] is None else f"{row['seconds']:.1f}",
        ]
        style = "bold" if is_last else ""
        table.add_row(*(Text(cell, style=style) for cell in cells), end_section=is_last)
        shown = row["stage"]
    return table


def _stage_table(manifests: Mapping[str, Mapping[str, Any]], done: Finished) -> Table:
    table = Table(title=Text("stages"), title_justify="left", show_footer=True)
    total = sum(float(manifest["seconds"]) for manifest in manifests.values())
    peaks = [m["peak_rss_bytes"] for m in manifests.values() if m["peak_rss_bytes"]]
    table.add_column("stage", footer="all")
    table.add_column("this time", footer=f"{done.seconds:.1f} s")
    table.add_column("seconds", justify="right", footer=f"{total:.1f}")
    most = f"{max(peaks) / 2**30:.2f}" if peaks else ""
    table.add_column("peak GiB", justify="right", footer=most)
    table.add_column("counts")
    for name, manifest in manifests.items():
        peak = manifest["peak_rss_bytes"]
        counts = ", ".join(
            f"{value:,} {key.replace('_', ' ')}" for key, value in manifest["counts"].items()
        )
        state = "ran" if name in done.ran else "cached" if name in done.cached else "old"
        cells = [name, state, f"{manifest['seconds']:.1f}", f"{peak / 2**30:.2f}" if peak else ""]
        table.add_row(*(Text(cell) for cell in (*cells, counts)))
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
