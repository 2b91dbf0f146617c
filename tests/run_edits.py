"""Changes to a copy of the finished tiny run, for tests that need a particular content."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from posttrain.data.quarantine import BadRow, Raw, quarantine_row, write_quarantine
from posttrain.run_directory import RunDirectory
from posttrain.tables import read_json, write_json

CAPABILITIES = ("letters",)
POINTS = ("base", "sft", "rl", "dpo")
STAGES = (
    *("model", "data", "eval-base", "judge", "prune", "sft", "eval-sft"),
    *("rl", "eval-rl", "pairs", "dpo", "eval-dpo"),
)
"""Stages before the report, in order."""
_TEXT_COLUMNS = {
    *("content", "reference", "text", "why", "extracted", "reason"),
    *("detail", "excerpt", "chosen", "rejected"),
}
"""Columns and fields with text by models, judges and data sets."""


def copy_run(finished: Path, run_dir: Path) -> Path:
    """Copy a run's stages and small files, without weights and unfinished work."""
    ignored = shutil.ignore_patterns("*.safetensors", "work", "optimizer.pt", "*-report")
    shutil.copytree(finished, run_dir, ignore=ignored)
    return run_dir


def stage_dir(run_dir: Path, name: str) -> Path:
    """Return the folder of a stage, which must be there."""
    found = RunDirectory(path=run_dir).find_stage(name)
    assert found is not None, name
    return found


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Let `change` edit the object in a JSON file."""
    value = read_json(path)
    change(value)
    write_json(path, value)


def edit_rows(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Let `change` edit every row of a Parquet file, which keeps its schema."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    for row in rows:
        change(row)
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)


def add_note(run_dir: Path, note: str) -> None:
    """Append `note` to every text that models, judges and data wrote, and to the run's name."""
    for path in (run_dir / "stages").rglob("*.parquet"):
        edit_rows(path, lambda row: row.update({k: _noted(k, v, note) for k, v in row.items()}))
    edit_json(stage_dir(run_dir, "prune") / "summary.json", lambda v: v.update(verdict=note))
    edit_json(run_dir / "recipe.resolved.json", lambda v: v.update(name=v["name"] + note))
    with (run_dir / "recipe.yaml").open("a", encoding="utf-8") as file:
        file.writelines(f"# {line}\n" for line in note.splitlines())


def _noted(name: str, value: Any, note: str) -> Any:
    if isinstance(value, str):
        return value + note if name in _TEXT_COLUMNS else value
    if isinstance(value, dict):
        return {key: _noted(key, inner, note) for key, inner in value.items()}
    return [_noted(name, inner, note) for inner in value] if isinstance(value, list) else value


def leave_undecided(run_dir: Path) -> None:
    """Make the first answer of every last RL group one that the verifier could not decide."""
    table = sorted((stage_dir(run_dir, "rl") / "rollouts").glob("step-*.parquet"))[-1]

    def undecide(row: dict[str, Any]) -> None:
        if row["index"] == 0:
            row.update(passed=None, kind="timeout", why="the verifier ran out of time")

    edit_rows(table, undecide)


def quarantine_rows(run_dir: Path) -> None:
    """Put a row of JSON that breaks off and a repeated row into the quarantine."""
    found = [
        (BadRow("broken_json", "line ends early"), '{"question": "Pick'),
        (BadRow("duplicate", "an earlier row is the same"), '{"question": "Pick 0: a or b?"}'),
    ]
    rows = [
        quarantine_row("sft.jsonl", Raw(line=n, excerpt=text), bad, malformed=n == 41)
        for n, (bad, text) in enumerate(found, start=41)
    ]
    write_quarantine(stage_dir(run_dir, "data") / "quarantine.parquet", rows)
