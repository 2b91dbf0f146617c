"""What a run would do, as values and for people."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.pipeline import STAGES, FileHashes, PlannedStage, RunDir, shown_launch_line
from posttrain.pipeline import plan as plan_stages
from posttrain.pipeline.estimates import estimate
from posttrain.pipeline.preflight import GIB, disk_needed_bytes
from posttrain.recipe import LoadedRecipe


def plan_values(loaded: LoadedRecipe, run_dir: Path) -> dict[str, Any]:
    """The whole plan as JSON values."""
    place = RunDir(path=run_dir.resolve())
    planned = plan_stages(loaded, place, STAGES, FileHashes(place.hashes))
    nearest = next(p for p in (place.path, *place.path.parents) if p.exists())
    return {
        "run_dir": str(run_dir),
        "stages": [_stage(item, run_dir, loaded) for item in planned],
        **estimate(loaded),
        "disk": {
            "needed_bytes": disk_needed_bytes(loaded),
            "free_bytes": shutil.disk_usage(nearest).free,
        },
    }


def _stage(item: PlannedStage, run_dir: Path, loaded: LoadedRecipe) -> dict[str, Any]:
    line = shown_launch_line(item.stage, run_dir, loaded.recipe.launch.num_processes)
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
    console = Console()
    table = Table(title=Text(f"{values['run_dir']}"), title_justify="left")
    for name in ("stage", "state", "why"):
        table.add_column(name)
    for stage in values["stages"]:
        state = "cached" if stage["cached"] else "resumes" if stage["resumes"] else "runs"
        table.add_row(*(Text(cell) for cell in (stage["stage"], state, stage["why"])))
    console.print(table)
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(values):
        facts.add_row(Text(name), Text(value))
    console.print(facts)


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for section, rows in values["rows"].items():
        found.append((f"rows {section}", "known once loaded" if rows is None else f"{rows:,}"))
    for section, tokens in values["tokens"].items():
        found.append((f"tokens {section}", "unknown" if tokens is None else f"{tokens:,} at most"))
    if values["judge_calls"] is not None:
        found.append(("judge calls", f"{values['judge_calls']:,}"))
    found += [(f"memory {name}", value) for name, value in _memory(values["memory"])]
    disk = values["disk"]
    needed, free = disk["needed_bytes"] / GIB, disk["free_bytes"] / GIB
    found.append(("disk", f"about {needed:.1f} GiB, {free:.1f} GiB are free"))
    found += [(s["stage"], s["launch"]) for s in values["stages"] if s["launch"]]
    return found


def _memory(memory: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            name.replace("_bytes", "").replace("_", " "),
            f"{value / GIB:.2f} GiB" if name.endswith("_bytes") else _plain(value),
        )
        for name, value in memory.items()
        if value is not None
    ]


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
