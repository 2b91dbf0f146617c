"""The plan of a run, as values and as tables."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from posttrain.artefacts import read_base_path
from posttrain.cli.tables import make_facts, make_table, wide_console
from posttrain.memory import GB, Devices
from posttrain.pipeline import STAGES, PlannedStage, shown_launch_line
from posttrain.pipeline import plan as plan_stages
from posttrain.pipeline.environment import cache_dir
from posttrain.pipeline.fit import in_words, memory_values
from posttrain.pipeline.preflight import GIB, disk_needed_bytes
from posttrain.pipeline.work import check_identity
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.models import UpcycledBase
from posttrain.run_directory import FileHashes, RunDirectory
from posttrain.tables import DamagedFile

LINES = (
    *("weights", "gathered", "adapters", "gradients", "optimizer"),
    *("activations", "live layer", "unpacking", "logits"),
    *("engine weights", "engine adapter", "engine working", "KV cache"),
    *("engine", "handed over", "context"),
)


def plan_values(
    loaded: LoadedRecipe, run_dir: Path, devices: Devices | None = None
) -> dict[str, Any]:
    """Return the whole plan as JSON values; with devices, whether it fits them.

    Raises RecipeError for a directory in which `run` would not work.
    """
    place = RunDirectory(path=run_dir.resolve())
    check_identity(loaded, place)
    planned = plan_stages(loaded, place, STAGES, FileHashes(place.hashes))
    nearest = next(p for p in (place.path, *place.path.parents) if p.exists())
    return {
        "run_dir": str(run_dir),
        "stages": [_stage(item, run_dir, loaded) for item in planned],
        **estimates(loaded, planned),
        "memory": memory_values(loaded.recipe, known_base(loaded, place), devices),
        "disk": {
            "needed_bytes": disk_needed_bytes(loaded),
            "free_bytes": shutil.disk_usage(nearest).free,
        },
    }


def estimates(loaded: LoadedRecipe, planned: Sequence[PlannedStage]) -> dict[str, Any]:
    """Return `rows`, `tokens` and `judge_calls` of all stages; None where it is not known."""
    from posttrain.data import count_rows

    counted = count_rows(loaded.recipe, find=loaded.find)
    rows: dict[str, int | None] = {}
    tokens: dict[str, int | None] = {}
    judge_calls: int | None = None
    for item in planned:
        found = item.stage.estimate(loaded.recipe, item.section, counted)
        rows |= found.rows
        tokens |= found.tokens
        judge_calls = found.judge_calls if judge_calls is None else judge_calls
    return {"rows": rows, "tokens": tokens, "judge_calls": judge_calls}


def known_base(loaded: LoadedRecipe, place: RunDirectory) -> Path | None:
    """Return the base model's folder if there is one: of this run, local, or cached."""
    made = place.find_stage("model")
    with suppress(OSError, DamagedFile):  # the run would make it anew
        if made is not None and (path := read_base_path(made)).exists():
            return path
    if "model.base" in loaded.files:
        return loaded.files["model.base"]
    if isinstance(loaded.recipe.model.base, UpcycledBase):
        from posttrain.models.base_model import upcycled_path  # imports torch

        path = upcycled_path(loaded.recipe.model, cache_dir=cache_dir())
        return path if path.exists() else None
    return None


def _stage(item: PlannedStage, run_dir: Path, loaded: LoadedRecipe) -> dict[str, Any]:
    launch = loaded.recipe.launch
    line = shown_launch_line(item.stage, run_dir, launch.num_processes, strategy=launch.strategy)
    return {
        "stage": item.stage.name,
        "cached": item.is_cached,
        "resumes": item.is_resumed,
        "why": item.why,
        "key": item.key,
        "launch": line if item.stage.is_training else None,
    }


def show_plan(values: Mapping[str, Any]) -> None:
    """Print the plan."""
    console = wide_console()
    rows = [
        (
            stage["stage"],
            "cached" if stage["cached"] else "resumes" if stage["resumes"] else "runs",
            stage["why"],
        )
        for stage in values["stages"]
    ]
    columns = ("stage", "state", "why")
    console.print(make_table(values["run_dir"], columns, rows, left=columns))
    console.print(make_facts(_facts(values)))
    if values["memory"]:
        show_memory(values["memory"])


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for section, rows in values["rows"].items():
        found.append((f"rows {section}", "known once loaded" if rows is None else f"{rows:,}"))
    for section, tokens in values["tokens"].items():
        found.append((f"tokens {section}", "unknown" if tokens is None else f"{tokens:,} at most"))
    if values["judge_calls"] is not None:
        found.append(("judge calls", f"{values['judge_calls']:,}"))
    if not values["memory"]:
        found.append(("memory", "known once the base model is there"))
    disk = values["disk"]
    needed, free = disk["needed_bytes"] / GIB, disk["free_bytes"] / GIB
    found.append(("disk", f"about {needed:.1f} GiB, {free:.1f} GiB are free"))
    found += [(s["stage"], s["launch"]) for s in values["stages"] if s["launch"]]
    return found


def show_memory(memory: Mapping[str, Any]) -> None:
    """Print parameters, operations, and bytes by stage with what to change if they do not fit."""
    console = wide_console()
    for table in (_parameters(memory), _operations(memory), _bytes(memory)):
        console.print()
        console.print(table)
    for assumed in dict.fromkeys(said for stage in memory["stages"] for said in stage["assumed"]):
        console.print(Text(f"assumed: {assumed}"))
    for stage in memory["stages"]:
        if stage["problem"]:
            console.print(Text(f"{stage['stage']}: {stage['problem']}"), soft_wrap=True)
    for suggestion in memory["suggestions"]:
        console.print(Text(f"change: {in_words(suggestion)}"), soft_wrap=True)


def _parameters(memory: Mapping[str, Any]) -> Table:
    adapters = memory["adapters"]
    kinds = [
        (kind, f"{count:,}", f"{adapters[kind]:,}" if adapters.get(kind) else "")
        for kind, count in memory["parameters"].items()
    ]
    trained = f"{memory['trained_parameters']:,}" if adapters else ""
    active = memory["active_parameters"]
    rows = [
        *kinds,
        ("all", f"{memory['num_parameters']:,}", trained),
        ("multiplied with one token", f"{active:,}", ""),
        ("and the embedding", f"{active + memory['parameters']['embeddings']:,}", ""),
    ]
    lines = [len(kinds) - 1]
    return make_table("parameters", ("kind", "base", "adapters"), rows, lines=lines)


def _operations(memory: Mapping[str, Any]) -> Table:
    heads = ("forward", "+ backward, frozen", "+ recomputed", "full training", "adapters besides")
    rows = [
        (f"{int(length):,}", *(f"{count / GB:.1f}" for count in flops.values()))
        for length, flops in memory["flops_per_token"].items()
    ]
    return make_table("GFLOP for one token", ("tokens in sequence", *heads), rows)


def _bytes(memory: Mapping[str, Any]) -> Table:
    stages = memory["stages"]
    devices = memory["devices"]
    on = f" of {devices['count']} with {devices['bytes'] / GB:g} GB" if devices else ""
    parts = [
        (line, *(_gb(stage["bytes"].get(line)) for stage in stages)) for line in _line_names(stages)
    ]
    totals = [("total", *(_gb(stage["total"]) for stage in stages))]
    if devices:
        totals.append(("left", *(_gb(stage["margin"]) for stage in stages)))
        totals.append(("fits", *("yes" if stage["fits"] else "NO" for stage in stages)))
    kept = [stage["kv_tokens"] for stage in stages]
    rows = [
        *parts,
        *totals,
        ("devices", *(str(stage["num_devices"]) for stage in stages)),
        ("KV cache tokens", *("" if n is None else f"{n:,}" for n in kept)),
        ("host GB", *(_gb(stage["host_bytes"] or None) for stage in stages)),
    ]
    columns = ("", *(stage["stage"] for stage in stages))
    lines = [len(parts) - 1, len(parts) + len(totals) - 1]
    return make_table(f"GB on each device{on}", columns, rows, lines=lines)


def _line_names(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of all stages: trainer first, then engine, then shared ones."""
    names = dict.fromkeys(name for stage in stages for name in stage["bytes"])
    order = {name: at for at, name in enumerate(LINES)}
    return sorted(names, key=lambda name: order[name])


def _gb(size: int | None) -> str:
    return "" if size is None else f"{size / GB:.1f}"
