"""Killed at any named kill point, a run of the real stages ends with the same data artefacts."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import RunServer

from posttrain.run_directory import RunDirectory
from posttrain.tables import read_table

pytestmark = pytest.mark.slow

KILL_POINTS = [
    ("model", "model.before_manifest"),
    ("data", "data.before_rename"),
    ("eval-base", "eval-base.after_generate"),
    ("judge", "judge.after_batch:2"),
    ("judge", "judge.after_pilot_generate"),
    ("prune", "prune.after_rename"),
    ("sft", "sft.after_step:13"),
    ("sft", "sft.before_marker:2"),
    ("sft", "sft.after_checkpoint:1"),
    ("sft", "sft.after_save"),
    ("eval-sft", "eval-sft.before_manifest"),
    ("rl", "rl.after_rollouts:3"),
    ("rl", "rl.after_sync:2"),
    ("rl", "rl.after_step:2"),
    ("rl", "rl.before_marker:3"),
    ("rl", "rl.after_checkpoint:2"),
    ("rl", "rl.after_save"),
    ("eval-rl", "eval-rl.before_rename"),
    ("pairs", "pairs.before_manifest"),
    ("dpo", "dpo.after_step:3"),
    ("dpo", "dpo.after_checkpoint:1"),
    ("dpo", "dpo.after_save"),
    ("eval-dpo", "eval-dpo.after_generate"),
    ("report", "report.before_rename"),
]

TIMED_FILES = {"MANIFEST.json", "metrics.jsonl", "parity.jsonl", "summary.json", "report.html"}
"""They say when and how long; README.md, the model card, too."""
TIMED_COLUMNS = {"seconds"}


def copy_without(tiny_run: Path, folder: Path, stage: str) -> None:
    """Copy the tiny run as it was before `stage`, the stages after it being there already."""
    shutil.copytree(tiny_run, folder, dirs_exist_ok=True, copy_function=os.link)
    place = RunDirectory(path=folder / "run").find_stage(stage)
    assert place is not None
    shutil.rmtree(place)
    shutil.rmtree(folder / "run" / "work")


def artefacts(run_dir: Path) -> dict[str, str]:
    """Every file of every stage that holds data -> its hash, times left out."""
    return {
        name: digest for path in _data_files(run_dir) for name, digest in _hashed(run_dir, path)
    }


def _data_files(run_dir: Path) -> Iterator[Path]:
    for path in sorted((run_dir / "stages").rglob("*")):
        if path.is_file() and path.name not in {*TIMED_FILES, "README.md", "training_args.bin"}:
            yield path


def _hashed(run_dir: Path, path: Path) -> Iterator[tuple[str, str]]:
    name = str(path.relative_to(run_dir))
    if path.suffix == ".parquet":
        rows = [{k: v for k, v in r.items() if k not in TIMED_COLUMNS} for r in read_table(path)]
        yield name, hashlib.sha256(repr(rows).encode()).hexdigest()
    else:
        yield name, hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_tiny_run_went_through_every_stage(tiny_run: Path) -> None:
    found = artefacts(tiny_run / "run")
    for name in (
        *("1-model/model.json", "2-data/samples.parquet", "3-eval-base/outcomes-heldout.parquet"),
        *("4-judge/verdicts.parquet", "5-prune/kept.parquet", "8-rl/rollouts/step-000001.parquet"),
        *("6-sft/policy/adapter_model.safetensors", "10-pairs/pairs.parquet"),
        "11-dpo/policy/adapter_model.safetensors",
    ):
        assert f"stages/{name}" in found
    stages = tiny_run / "run" / "stages"
    prompts = read_table(stages / "2-data" / "prompts.parquet")
    judged = read_table(stages / "4-judge" / "prompt_verdicts.parquet")
    assert [row["sample_id"] for row in judged] == [row["prompt_id"] for row in prompts]
    assert all(0.0 <= row["score"] <= 1.0 for row in judged)
    pairs = read_table(tiny_run / "run" / "stages" / "10-pairs" / "pairs.parquet")
    assert len(pairs) >= 4


@pytest.mark.parametrize(
    ("stage", "kill_at"), KILL_POINTS, ids=[kill_at for _, kill_at in KILL_POINTS]
)
def test_a_run_that_was_killed_ends_with_the_same_artefacts(
    run_server: RunServer, tiny_run: Path, tmp_path: Path, stage: str, kill_at: str
) -> None:
    copy_without(tiny_run, tmp_path, stage)
    run_server.run(tmp_path, kill_at=kill_at)
    run_server.run(tmp_path)
    assert artefacts(tmp_path / "run") == artefacts(tiny_run / "run")


def test_the_kill_points_are_enough_and_cover_every_stage(tiny_run: Path) -> None:
    finished = RunDirectory(path=tiny_run / "run").finished_stages()
    assert {stage for stage, _ in KILL_POINTS} == set(finished)
    assert len(KILL_POINTS) >= 12


def test_vllm_takes_the_same_way(run_server: RunServer, tiny_run: Path, tmp_path: Path) -> None:
    """One kill in the middle of RL with the real vLLM, whose weights a re-run has to sync anew."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    copy_without(tiny_run, tmp_path, "rl")
    overrides = ("engine.kind=vllm", "engine.kv_cache_gib=0.25", "eval.after=[base]", "dpo=null")
    run_server.run(tmp_path, kill_at="rl.after_checkpoint:2", overrides=overrides)
    run_server.run(tmp_path, overrides=overrides)
    steps = sorted(p.name for p in (tmp_path / "run/stages/8-rl/rollouts").iterdir())
    assert [name for name in steps if name.endswith(".parquet")] == [
        f"step-{step:06d}.parquet" for step in range(4)
    ]
    summary = json.loads((tmp_path / "run/stages/8-rl/summary.json").read_text())
    assert summary["resumed_from_step"] == 2


def test_a_finished_run_does_nothing_and_soon_says_so(tiny_run: Path) -> None:
    """Processor seconds, which waiting for other processes does not lengthen; limit 5 s."""
    before = {path: path.stat().st_mtime_ns for path in (tiny_run / "run" / "stages").rglob("*")}
    command = [sys.executable, "-m", "posttrain", "run", str(tiny_run / "recipe.yaml")]
    used = _child_seconds()
    done = subprocess.run(
        [*command, "--run-dir", str(tiny_run / "run")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "nothing to do: every stage is finished" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert _child_seconds() - used < 5.0


def _child_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
