"""What a run would do, as values and for people."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from posttrain.cli.results import wide_console
from posttrain.models.base import upcycled_path
from posttrain.pipeline import STAGES, FileHashes, PlannedStage, RunDir, shown_launch_line
from posttrain.pipeline import plan as plan_stages
from posttrain.pipeline.estimates import estimate
from posttrain.pipeline.preflight import GIB, disk_needed_bytes
from posttrain.pipeline.steps.preparing import cache_dir
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.schema import UpcycledBase
from posttrain.tables import read_json


def plan_values(loaded: LoadedRecipe, run_dir: Path) -> dict[str, Any]:
    """The whole plan as JSON values."""
    place = RunDir(path=run_dir.resolve())
    planned = plan_stages(loaded, place, STAGES, FileHashes(place.hashes))
    nearest = next(p for p in (place.path, *place.path.parents) if p.exists())
    return {
        "run_dir": str(run_dir),
        "stages": [_stage(item, run_dir, loaded) for item in planned],
        **estimate(loaded, base=known_base(loaded, place)),
        "disk": {
            "needed_bytes": disk_needed_bytes(loaded),
            "free_bytes": shutil.disk_usage(nearest).free,
        },
    }


def known_base(loaded: LoadedRecipe, place: RunDir) -> Path | None:
    """The base model's folder: of this run, beside the recipe, or made before; else None."""
    written = place.stages / "1-model" / "model.json"
    if written.exists() and (path := Path(read_json(written)["path"])).exists():
        return path
    if "model.base" in loaded.files:
        return loaded.files["model.base"]
    if isinstance(loaded.recipe.model.base, UpcycledBase):
        path = upcycled_path(loaded.recipe.model, cache_dir=cache_dir())
        return path if path.exists() else None
    return None


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
    console = wide_console()
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
    """Weights and bytes; the recipe's own words for what needs them."""
    if not memory:
        return [("", "known once the base model is there")]
    weights = f"{memory['num_parameters']:,}, {memory['trained_parameters']:,} of them trained"
    sizes = [(name, f"{size / GIB:.2f} GiB") for name, size in memory["bytes"].items()]
    return [("parameters", weights), *sizes]
