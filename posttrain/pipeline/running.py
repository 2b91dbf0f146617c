"""Run a recipe's stages in order; running again is how one resumes."""

from __future__ import annotations

import filecmp
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from posttrain.errors import PosttrainError, RecipeError
from posttrain.kill_points import kill_point
from posttrain.pipeline import work
from posttrain.pipeline.failure import bug_message, explain, write_crash
from posttrain.pipeline.launch import Launcher, StageCrash, handling_signals, launching
from posttrain.pipeline.planning import PlannedStage, plan
from posttrain.pipeline.preflight import check_environment
from posttrain.pipeline.stage import Stage, StageContext
from posttrain.pipeline.stages import STAGES, stages_of
from posttrain.progress import note
from posttrain.recipe import LoadedRecipe
from posttrain.run_directory import (
    REPORT,
    FileHashes,
    RunDirectory,
    put_in_place,
    recover_stages,
    seal_stage,
)
from posttrain.tables import write_bytes, write_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """Stages that a run executed or found finished."""

    run_dir: Path
    ran: tuple[str, ...]
    cached: tuple[str, ...]
    seconds: float


def run(
    loaded: LoadedRecipe,
    run_dir: Path,
    *,
    table: Sequence[Stage[Any]] = STAGES,
    launcher: Launcher | None = None,
    until: str | None = None,
) -> Finished:
    """Run the unfinished stages of a recipe, up to and including `until`.

    Each runs in a process of its own unless a `launcher` is given. Raises Locked, RecipeError for
    the directory of another recipe, and what a stage raised.
    """
    started = time.monotonic()
    run_dir = run_dir.resolve()
    place = RunDirectory(path=run_dir)
    _check_until(until, loaded, table)
    work.check_identity(loaded, place)
    with work.hold(place):
        try:
            with handling_signals(_interrupt):
                return _run(loaded, place, table, launcher, until, started)
        except PosttrainError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            known = explain(error, run_dir)
            if known is None:
                message, hint = bug_message("the run", error, write_crash(run_dir, "run", error))
                known = StageCrash(message, hint=hint)
            raise known from error


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _run(
    loaded: LoadedRecipe,
    place: RunDirectory,
    table: Sequence[Stage[Any]],
    launcher: Launcher | None,
    until: str | None,
    started: float,
) -> Finished:
    work.describe(loaded, place)
    hashes = FileHashes(place.hashes)
    for said in recover_stages(place.stages, hashes):
        note(said)
    planned = plan(loaded, place, table, hashes)
    _archive_unused_stages(place, planned)
    _renumber_stages(place, planned)
    last = next((n for n, p in enumerate(planned, start=1) if p.stage.name == until), len(planned))
    to_run = [p.stage for p in planned[:last] if not p.is_cached]
    ran: list[str] = []
    cached: list[str] = []
    with nullcontext(launcher) if launcher else launching(place.path, to_run) as launch:
        if to_run:
            check_environment(loaded, place.path)
        for position, item in enumerate(planned[:last], start=1):
            name = item.stage.name
            if item.is_cached:
                work.end_work(place, name)
                cached.append(name)
            else:
                note(f"[{position}/{len(planned)}] {name}: {item.why}")
                _run_stage(loaded, place, item, planned, launch, hashes)
                ran.append(name)
    hashes.save()
    _show_report(place, planned)
    return Finished(
        run_dir=place.path,
        ran=tuple(ran),
        cached=tuple(cached),
        seconds=time.monotonic() - started,
    )


def _run_stage(
    loaded: LoadedRecipe,
    place: RunDirectory,
    item: PlannedStage,
    planned: Sequence[PlannedStage],
    launcher: Launcher,
    hashes: FileHashes,
) -> None:
    stage, name, final = item.stage, item.stage.name, place.stage(item.number, item.stage.name)
    if item.is_broken:
        moved = work.set_aside(place, final, "quarantine")
        note(f"the broken directory is kept as {moved}")
    if said := work.begin_work(place, name, item.key):
        note(said)
    out = place.temporary(item.number, name)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    folders = {p.stage.name: place.stage(p.number, p.stage.name) for p in planned}
    context = StageContext(
        stage=name,
        key=item.key,
        recipe=loaded.recipe,
        recipe_path=loaded.path,
        run_dir=place.path,
        seed=item.seed,
        inputs={other: folders[other] for other in stage.reads if other in folders},
        work_dir=place.work / name,
        out_dir=out,
    )
    began, clock = time.time(), time.monotonic()
    write_json(place.running, {"stage": name, "started": began})
    try:
        result = launcher(stage, item.section, context)
        seconds = round(time.monotonic() - clock, 3)
        seal_stage(
            out,
            hashes=hashes,
            stage=name,
            key=item.key,
            key_parts=item.key_parts,
            seed=item.seed,
            started=began,
            seconds=seconds,
            peak_rss_bytes=result.peak_rss_bytes,
            counts=result.counts,
        )
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    finally:
        place.running.unlink(missing_ok=True)
    kill_point(f"{name}.before_rename")
    put_in_place(out, final)
    kill_point(f"{name}.after_rename")
    work.end_work(place, name)
    hashes.save()
    counted = ", ".join(f"{_shown(v)} {k.replace('_', ' ')}" for k, v in result.counts.items())
    note(f"{name}: {seconds:.1f} s" + (f", {counted}" if counted else ""))


def _archive_unused_stages(place: RunDirectory, planned: Sequence[PlannedStage]) -> None:
    """Move the folders of stages that are not in the recipe to aside/."""
    ours = {place.find_stage(p.stage.name) for p in planned}
    for folder in sorted(place.stages.iterdir()):
        if folder not in ours and not folder.name.startswith("."):
            moved = work.set_aside(place, folder, "aside")
            note(f"{folder.name} is not part of this recipe: moved to {moved}")


def _renumber_stages(place: RunDirectory, planned: Sequence[PlannedStage]) -> None:
    """Rename stage folders that another version of posttrain numbered differently."""
    for item in reversed(planned):
        folder = place.find_stage(item.stage.name)
        final = place.stage(item.number, item.stage.name)
        if folder is not None and folder != final:
            folder.rename(final)


def _show_report(place: RunDirectory, planned: Sequence[PlannedStage]) -> None:
    """Copy the finished report to the top of the run directory."""
    for item in planned:
        source = place.stage(item.number, item.stage.name) / REPORT
        shown = place.report
        if source.exists() and not (shown.exists() and filecmp.cmp(source, shown, shallow=False)):
            write_bytes(shown, source.read_bytes())


def _check_until(until: str | None, loaded: LoadedRecipe, table: Sequence[Stage[Any]]) -> None:
    names = [stage.name for stage in stages_of(loaded.recipe, table)]
    if until is not None and until not in names:
        raise RecipeError(
            f"--until {until}: this recipe has no such stage",
            hint=f"one of {', '.join(names)}",
        )


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
