"""Stages in processes of their own: how they are started, what they raise, how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import toy_stages

from posttrain.errors import (
    HealthStop,
    Interrupted,
    PosttrainError,
    SetupError,
)
from posttrain.pipeline import (
    STAGES,
    StageCrash,
    holder_of,
    launch,
    run,
    run_in_child,
    run_in_process,
    shown_launch_line,
)
from posttrain.pipeline import environment as environment_module
from posttrain.run_directory import RunDirectory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    toy_stages.write_recipe(tmp_path)
    return tmp_path


def test_launch_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = {stage.name: stage for stage in STAGES}

    def line(name: str, num_processes: int, *, cuda: bool, strategy: str = "ddp") -> str:
        monkeypatch.setattr(launch, "has_cuda", lambda: cuda)
        return shown_launch_line(stages[name], Path("runs/a b"), num_processes, strategy=strategy)

    ours = "-m posttrain.pipeline.stage 'runs/a b'"
    assert line("judge", 4, cuda=True) == f"python {ours} judge"
    assert line("sft", 1, cuda=False) == f"python {ours} sft"
    assert line("sft", 2, cuda=False) == (
        f"python -m torch.distributed.run --standalone --nproc_per_node=2 {ours} sft"
    )
    assert line("rl", 1, cuda=True) == (
        f"python -m accelerate.commands.launch --num_processes 1 {ours} rl"
    )
    assert "--num_processes 8 --multi_gpu" in line("dpo", 8, cuda=True)
    assert line("sft", 8, cuda=True, strategy="fsdp") == (
        "python -m accelerate.commands.launch "
        f"--config_file 'runs/a b/work/sft/accelerate.yaml' {ours} sft"
    )
    sharded = line("sft", 2, cuda=False, strategy="fsdp")
    assert sharded.startswith("env ACCELERATE_USE_FSDP=true FSDP_VERSION=2 ")
    assert sharded.endswith(
        f" python -m torch.distributed.run --standalone --nproc_per_node=2 {ours} sft"
    )
    for one in (line("sft", 1, cuda=False, strategy="fsdp"), line("judge", 2, cuda=False)):
        assert "FSDP" not in one


def test_cuda_needs_a_driver_and_a_cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_module, "version_of", lambda _: "2.13.0+cpu")
    assert not environment_module.has_cuda()
    monkeypatch.setattr(environment_module, "version_of", lambda _: "2.13.0")
    monkeypatch.setattr(environment_module.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment_module.has_cuda()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not environment_module.has_cuda()


@pytest.fixture
def child_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stage processes find the toy functions."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.mark.usefixtures("child_path")
def test_stages_run_in_processes_of_their_own(folder: Path) -> None:
    loaded = toy_stages.load(folder)
    done = run(
        loaded, folder / "run", table=toy_stages.table(), launcher=run_in_child, until="data"
    )
    assert done.ran == ("model", "data")
    manifest = json.loads((folder / "run" / "stages" / "2-data" / "MANIFEST.json").read_text())
    assert manifest["peak_rss_bytes"] > 2**20
    assert run(
        loaded, folder / "run", table=toy_stages.table(), launcher=run_in_process, until="data"
    ).cached == ("model", "data")


FAILURES: list[tuple[str, type[PosttrainError], str]] = [
    ("unhealthy", HealthStop, "loss is nan"),
    ("too_bad", HealthStop, "3 of 4 rows"),
    ("buggy", StageCrash, "IndexError"),
    ("full_disk", SetupError, "disk is full"),
    ("killed", SetupError, "memory"),
]


@pytest.mark.usefixtures("child_path")
@pytest.mark.parametrize(("function", "kind", "said"), FAILURES)
def test_what_a_stage_process_raised_is_raised_here(
    folder: Path, function: str, kind: type[PosttrainError], said: str
) -> None:
    loaded, table = toy_stages.load(folder), toy_stages.table(model=function)
    with pytest.raises(kind, match=said) as error:
        run(loaded, folder / "run", table=table, launcher=run_in_child)
    assert error.value.hint
    assert len(list((folder / "run").glob("crash-*"))) == (kind is StageCrash)


@pytest.mark.usefixtures("child_path")
@pytest.mark.slow
def test_several_processes_without_cuda_go_through_torchrun(folder: Path) -> None:
    loaded = toy_stages.load(folder, "launch.num_processes=2", "sft.judge=null")
    table = [s for s in toy_stages.table(sft="multi") if s.name in ("model", "sft")]
    run(loaded, folder / "run", table=table, launcher=run_in_child)
    assert {p.name for p in (folder / "run").glob("rank-*")} == {"rank-0-of-2", "rank-1-of-2"}


def start_run(folder: Path, function: str) -> subprocess.Popen[str]:
    """A run as a process whose first stage is `function`; returns when the stage works."""
    code = (
        "import sys, toy_stages\n"
        "from pathlib import Path\n"
        "from posttrain.pipeline import run\n"
        "from posttrain.errors import PosttrainError\n"
        f"folder = Path({str(folder)!r})\n"
        "try:\n"
        f"    table = toy_stages.table(model={function!r})\n"
        "    run(toy_stages.load(folder), folder / 'run', table=table)\n"
        "except PosttrainError as error:\n"
        "    print(type(error).__name__, error.message)\n"
        "    sys.exit(error.exit_code)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    wait_for(lambda: (folder / "run" / "slow.pid").exists())
    return process


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_stage_keeps_its_work_and_exits_5(folder: Path, number: int) -> None:
    process = start_run(folder, "slow")
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == Interrupted.exit_code, out
    assert "Interrupted stopped during model" in out
    assert "Traceback" not in out
    assert (folder / "run" / "work" / "model" / "state.json").exists()
    assert not is_alive(int((folder / "run" / "slow.pid").read_text()))
    assert holder_of(RunDirectory(path=folder / "run")) is None


def test_a_second_signal_leaves_at_once(folder: Path) -> None:
    process = start_run(folder, "deaf")
    stage = int((folder / "run" / "slow.pid").read_text())
    process.send_signal(signal.SIGINT)
    wait_for(lambda: (folder / "run" / "heard").exists())
    assert is_alive(stage)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode == Interrupted.exit_code
    wait_for(lambda: not is_alive(stage), 5)


def test_a_stage_does_not_outlive_a_killed_run(folder: Path) -> None:
    process = start_run(folder, "slow")
    stage = int((folder / "run" / "slow.pid").read_text())
    process.kill()
    process.communicate(timeout=5)
    wait_for(lambda: not is_alive(stage), 10)
