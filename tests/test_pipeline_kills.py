"""Killed at any named kill point, a run of the real stages ends with the same data artefacts."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.pipeline import STAGES
from posttrain.tables import read_table

pytestmark = pytest.mark.slow

RECIPE = """\
name: kills
seed: 3
model: {base: MODEL, dtype: float32, lora: {rank: 8, alpha: 16}}
engine: {kind: transformers, max_model_len: 128, max_num_seqs: 32}
sft:
  data: [{path: sft.jsonl, capability: letters, verifier: exact}]
  judge: judge.yaml
  pilot: {num_samples: 4, num_generations: 2, max_tokens: 4}
  prune: {drop_easiest: 0.25}
  trainer:
    max_steps: 24
    save_steps: 8
    per_device_train_batch_size: 8
    learning_rate: 2.0e-2
rl:
  data: [{path: rl.jsonl, capability: letters, verifier: exact}]
  curriculum: curricula/adaptive.yaml
  trainer:
    num_generations: 4
    max_steps: 4
    save_steps: 1
    per_device_train_batch_size: 16
    max_completion_length: 4
    learning_rate: 1.0e-4
dpo:
  pairs: {max_pairs: 8, max_length_ratio: 4.0}
  trainer: {max_steps: 4, save_steps: 2, per_device_train_batch_size: 2, learning_rate: 1.0e-5}
eval: {heldout_size: 6, num_generations: 2, max_tokens: 4, pass_at: [2]}
"""

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


class Server:
    """The other end of run_server.py."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "server.log"
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("run_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **wanted: Any) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({**wanted, "log": str(self.log)}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def run(self, folder: Path, *, kill_at: str = "", overrides: tuple[str, ...] = ()) -> None:
        """Run the recipe in `folder`; with `kill_at` it must die there, else it must finish."""
        answer = self.ask(
            recipe=str(folder / "recipe.yaml"),
            run_dir=str(folder / "run"),
            overrides=overrides,
            kill_at=kill_at,
        )
        said = self.log.read_text()[-4000:]
        if kill_at:
            assert answer["signal"] == signal.SIGKILL, f"{kill_at} was never reached:\n{said}"
        else:
            assert answer["code"] == 0, said

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server, None, None]:
    started = Server(tmp_path_factory.mktemp("server"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def unbroken(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert server.ask(model=str(folder / "model"))["code"] == 0
    (folder / "recipe.yaml").write_text(RECIPE.replace("MODEL", str(folder / "model")))
    (folder / "judge.yaml").write_text("kind: answer_likelihood\nbatch_size: 16\n")
    for name, word, num_rows in (("sft", "Pick", 40), ("rl", "Choose", 30)):
        rows = [
            json.dumps({"question": f"{word} {i}: a or b?", "answer": "ab"[i * 7 % 5 % 2]})
            for i in range(num_rows)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    server.run(folder)
    return folder


def copy_without(unbroken: Path, folder: Path, stage: str) -> None:
    """The unbroken run as it was before `stage`, the stages after it being there already."""
    shutil.copytree(unbroken, folder, dirs_exist_ok=True, copy_function=os.link)
    number = [s.name for s in STAGES].index(stage) + 1
    shutil.rmtree(folder / "run" / "stages" / f"{number}-{stage}")
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


def test_the_unbroken_run_went_through_every_stage(unbroken: Path) -> None:
    found = artefacts(unbroken / "run")
    for name in (
        *("1-model/model.json", "2-data/samples.parquet", "3-eval-base/outcomes-heldout.parquet"),
        *("4-judge/verdicts.parquet", "5-prune/kept.parquet", "8-rl/rollouts/step-000001.parquet"),
        *("6-sft/policy/adapter_model.safetensors", "10-pairs/pairs.parquet"),
        *("11-dpo/policy/adapter_model.safetensors", "13-report/policy/adapter_model.safetensors"),
    ):
        assert f"stages/{name}" in found
    stages = unbroken / "run" / "stages"
    prompts = read_table(stages / "2-data" / "prompts.parquet")
    judged = read_table(stages / "4-judge" / "prompt_verdicts.parquet")
    assert [row["sample_id"] for row in judged] == [row["prompt_id"] for row in prompts]
    assert all(0.0 <= row["score"] <= 1.0 for row in judged)
    pairs = read_table(unbroken / "run" / "stages" / "10-pairs" / "pairs.parquet")
    assert len(pairs) >= 4


@pytest.mark.parametrize(
    ("stage", "kill_at"), KILL_POINTS, ids=[kill_at for _, kill_at in KILL_POINTS]
)
def test_a_run_that_was_killed_ends_with_the_same_artefacts(
    server: Server, unbroken: Path, tmp_path: Path, stage: str, kill_at: str
) -> None:
    copy_without(unbroken, tmp_path, stage)
    server.run(tmp_path, kill_at=kill_at)
    server.run(tmp_path)
    assert artefacts(tmp_path / "run") == artefacts(unbroken / "run")


def test_the_kill_points_are_enough_and_cover_every_stage() -> None:
    assert {stage for stage, _ in KILL_POINTS} == {stage.name for stage in STAGES}
    assert len(KILL_POINTS) >= 12


def test_vllm_takes_the_same_way(server: Server, unbroken: Path, tmp_path: Path) -> None:
    """One kill in the middle of RL with the real vLLM, whose weights a re-run has to sync anew."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    copy_without(unbroken, tmp_path, "rl")
    overrides = ("engine.kind=vllm", "engine.kv_cache_gib=0.25", "eval.after=[base]", "dpo=null")
    server.run(tmp_path, kill_at="rl.after_checkpoint:2", overrides=overrides)
    server.run(tmp_path, overrides=overrides)
    steps = sorted(p.name for p in (tmp_path / "run/stages/8-rl/rollouts").iterdir())
    assert [name for name in steps if name.endswith(".parquet")] == [
        f"step-{step:06d}.parquet" for step in range(4)
    ]
    summary = json.loads((tmp_path / "run/stages/8-rl/summary.json").read_text())
    assert summary["resumed_from_step"] == 2


def test_a_finished_run_does_nothing_and_soon_says_so(unbroken: Path) -> None:
    """Processor seconds, which waiting for other processes does not lengthen; limit 5 s."""
    before = {path: path.stat().st_mtime_ns for path in (unbroken / "run" / "stages").rglob("*")}
    command = [sys.executable, "-m", "posttrain", "run", str(unbroken / "recipe.yaml")]
    used = _child_seconds()
    done = subprocess.run(
        [*command, "--run-dir", str(unbroken / "run")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "nothing to do: every stage is finished" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert _child_seconds() - used < 5.0


def _child_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
