"""State of a run, as values and as tables; results at its end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.text import Text

from posttrain.artefacts import EVALUATION, SuiteResult, read_evaluation
from posttrain.cli.tables import make_table, wide_console
from posttrain.errors import RecipeError
from posttrain.pipeline import STAGES, Finished, Stage, holder_of, read_progress, stages_of
from posttrain.recipe import Recipe
from posttrain.report.results import MACRO, result_rows, result_table, stage_table
from posttrain.run_directory import FinishedStage, RunDirectory, read_json_object
from posttrain.tables import DamagedFile, read_json


def status_values(run_dir: Path) -> dict[str, Any]:
    """Return the state of every stage, and the process that holds the lock, as JSON values."""
    place = RunDirectory(path=run_dir)
    holder = holder_of(place)
    finished = place.finished_stages()
    running = _running(place) if holder is not None else None
    name, stages = _name_and_stages(place)
    rows: list[dict[str, Any]] = []
    for stage in stages:
        work = place.work / stage.name
        row: dict[str, Any] = {"stage": stage.name, "seconds": None, "progress": None}
        if stage.name == running:
            row |= {"state": "running", "progress": read_progress(work)}
        elif stage.name in finished:
            row |= {"state": "done", "seconds": finished[stage.name].manifest.seconds}
        elif place.find_stage(stage.name) is not None:
            row["state"] = "broken"
        elif work.exists():
            row |= {"state": "unfinished", "progress": read_progress(work)}
        else:
            row["state"] = "waiting"
        rows.append(row)
    crashes = sorted(str(path) for path in run_dir.glob("crash-*.txt"))
    return {
        "run_dir": str(run_dir),
        "name": name,
        "holder": holder,
        "stages": rows,
        "crashes": crashes,
    }


def show_status(values: Mapping[str, Any]) -> None:
    """Print the state."""
    console = wide_console()
    rows = [
        (
            row["stage"],
            row["state"],
            "" if row["seconds"] is None else f"{row['seconds']:.1f}",
            _progress(row["progress"]),
        )
        for row in values["stages"]
    ]
    columns = ("stage", "state", "seconds", "progress")
    console.print(make_table(values["run_dir"], columns, rows, left=["state", "progress"]))
    holder = values["holder"]
    if holder is None:
        said = "nobody works on it"
    else:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["started"]))
        said = f"process {holder['pid']} on {holder['host']} works on it since {since}"
    console.print(Text(said))
    for crash in values["crashes"]:
        console.print(Text(f"a bug left its traceback in {crash}"), soft_wrap=True)


def _running(place: RunDirectory) -> str | None:
    try:
        return read_json(place.running)["stage"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _name_and_stages(place: RunDirectory) -> tuple[str | None, list[Stage[Any]]]:
    """Return the run's name and its stages.

    The schema may have changed since an earlier posttrain resolved the recipe. Of such a run the
    stages that have begun are known, and not those that were still to come.
    """
    path = place.resolved_recipe
    values: dict[str, Any] = {}
    try:
        values = read_json_object(path)
        recipe = Recipe.model_validate(values)
        return recipe.name, stages_of(recipe, STAGES)
    except (OSError, ValueError) as error:
        begun = [s for s in STAGES if place.find_stage(s.name) or (place.work / s.name).exists()]
        if "model" in values and begun:
            return values.get("name"), begun
        raise RecipeError(
            f"{path} cannot be read: a run was killed as it began, or the file is damaged",
            hint=f"posttrain run RECIPE --run-dir {place.path}",
        ) from error


def _progress(progress: Mapping[str, Any] | None) -> str:
    if progress is None:
        return ""
    total = "" if progress["total"] is None else f"/{progress['total']}"
    fields = "".join(f", {name} {value}" for name, value in progress["fields"].items())
    age = f" ({progress['age_seconds']:.0f} s ago)"
    return f"{progress['label']} {progress['done']}{total}{fields}{age}"


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
