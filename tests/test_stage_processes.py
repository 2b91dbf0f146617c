"""Stages in processes of their own: how they are started, what they raise, how they end."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
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
from posttrain.pipeline.warm import WarmProcess
from posttrain.run_directory import RunDirectory
from posttrain.tables import read_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    toy_stages.write_recipe(tmp_path)
    return tmp_path


def test_launch_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = {stage.name: stage for stage in STAGES}

    def line(name: str, num_processes: int, *, cuda: bool, strategy: str = "ddp") -> str:
        monkeypatch.setattr(launch, "has_cuda", lambda: cuda)
        return shown_launch_line(stages[name], Path("runs/a b"), num_processes, strategy=strategy)

    ours = "-m posttrain.pipeline.stage_process 'runs/a b'"
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
    """Let stage processes find the toy functions; let a warm process import nothing."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(launch, "PRELOADED", ())


IS_WARM = pytest.mark.parametrize("is_warm", [False, True], ids=["fresh", "warm"])


@pytest.mark.usefixtures("child_path")
@IS_WARM
def test_stages_run_in_processes_of_their_own(folder: Path, is_warm: bool) -> None:
    loaded, run_dir = toy_stages.load(folder), folder / "run"
    table = toy_stages.table(loads_models=is_warm, model="parent", data="parent")
    done = run(loaded, run_dir, table=table, until="data")
    assert done.ran == ("model", "data")
    manifest = read_json(run_dir / "stages" / "2-data" / "MANIFEST.json")
    assert manifest["peak_rss_bytes"] > 2**20
    said = [read_json(run_dir / "stages" / name / "out.json") for name in ("1-model", "2-data")]
    assert len({os.getpid(), *(one["pid"] for one in said)}) == 3
    parents = {one["parent"] for one in said}
    assert (parents == {os.getpid()}) == (not is_warm)
    assert len(parents) == 1
    assert not any(is_alive(pid) for pid in parents - {os.getpid()})
    assert run(
        loaded, run_dir, table=toy_stages.table(), launcher=run_in_process, until="data"
    ).cached == ("model", "data")


@pytest.mark.usefixtures("child_path")
def test_only_stages_that_are_still_to_run_decide_whether_to_be_warm(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a warm process for stages that load no model")

    monkeypatch.setattr(launch, "WarmProcess", refuse)
    table = [
        dataclasses.replace(stage, loads_models=stage.name not in ("model", "data"))
        for stage in toy_stages.table()
    ]
    assert run(toy_stages.load(folder), folder / "run", table=table, until="data").ran


@pytest.mark.usefixtures("child_path")
def test_a_stage_is_started_afresh_where_the_warm_process_has_died(folder: Path) -> None:
    warm = WarmProcess(folder, os.environ, preloaded=())
    warm.close()
    with pytest.raises(ConnectionError):
        warm.fork(folder, "model", {})
    table = toy_stages.table()
    launcher = partial(run_in_child, warm=warm)
    done = run(
        toy_stages.load(folder), folder / "run", table=table, launcher=launcher, until="model"
    )
    assert done.ran == ("model",)


@pytest.mark.usefixtures("child_path")
@IS_WARM
def test_what_libraries_print_stays_in_a_file(
    folder: Path, is_warm: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    table = toy_stages.table(loads_models=is_warm, model="noisy")
    with pytest.raises(HealthStop):
        run(toy_stages.load(folder), folder / "run", table=table)
    out, err = capfd.readouterr()
    assert out == ""
    assert "a word to the user\n" in err
    assert "toys: 1/1" in err
    assert "noise" not in err
    printed = launch.output_log(folder / "run" / "work" / "model").read_text()
    assert sorted(printed.splitlines()) == [
        "noise from below",
        "noise on standard error",
        "noise on standard output",
    ]


FAILURES: list[tuple[str, type[PosttrainError], str]] = [
    ("unhealthy", HealthStop, "loss is nan"),
    ("too_bad", HealthStop, "3 of 4 rows"),
    ("buggy", StageCrash, "IndexError"),
    ("full_disk", SetupError, "disk is full"),
    ("killed", SetupError, "memory"),
]


@pytest.mark.usefixtures("child_path")
@IS_WARM
@pytest.mark.parametrize(("function", "kind", "said"), FAILURES)
def test_what_a_stage_process_raised_is_raised_here(
    folder: Path, function: str, kind: type[PosttrainError], said: str, is_warm: bool
) -> None:
    loaded = toy_stages.load(folder)
    table = toy_stages.table(loads_models=is_warm, model=function)
    with pytest.raises(kind, match=said) as error:
        run(loaded, folder / "run", table=table)
    assert error.value.hint
    crashes = [file.read_text() for file in (folder / "run").glob("crash-*")]
    assert len(crashes) == (kind is StageCrash)
    assert all("IndexError" in crash and "as libraries do" in crash for crash in crashes)


@pytest.mark.usefixtures("child_path")
@pytest.mark.slow
def test_several_processes_without_cuda_go_through_torchrun(folder: Path) -> None:
    loaded = toy_stages.load(folder, "launch.num_processes=2", "sft.judge=null")
    table = [
        s for s in toy_stages.table(sft="multi", loads_models=True) if s.name in ("model", "sft")
    ]
    run(loaded, folder / "run", table=table)
    assert {p.name for p in (folder / "run").glob("rank-*")} == {"rank-0-of-2", "rank-1-of-2"}


def start_run(folder: Path, function: str, *, is_warm: bool) -> subprocess.Popen[str]:
    """A run as a process whose first stage is `function`; returns when the stage works."""
    code = (
        "import sys, toy_stages\n"
        "from pathlib import Path\n"
        "from posttrain.pipeline import launch, run\n"
        "from posttrain.errors import PosttrainError\n"
        f"folder = Path({str(folder)!r})\n"
        "launch.PRELOADED = ()\n"
        "try:\n"
        f"    table = toy_stages.table(loads_models={is_warm}, model={function!r})\n"
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


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@IS_WARM
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_stage_keeps_its_work_and_exits_5(
    folder: Path, number: int, is_warm: bool
) -> None:
    process = start_run(folder, "slow", is_warm=is_warm)
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == Interrupted.exit_code, out
    assert "Interrupted stopped during model" in out
    assert "Traceback" not in out
    assert (folder / "run" / "work" / "model" / "state.json").exists()
    assert not is_alive(int((folder / "run" / "slow.pid").read_text()))
    assert holder_of(RunDirectory(path=folder / "run")) is None


@IS_WARM
def test_a_second_signal_leaves_at_once(folder: Path, is_warm: bool) -> None:
    process = start_run(folder, "deaf", is_warm=is_warm)
    stage = int((folder / "run" / "slow.pid").read_text())
    process.send_signal(signal.SIGINT)
    wait_for(lambda: (folder / "run" / "heard").exists())
    assert is_alive(stage)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode == Interrupted.exit_code
    wait_for(lambda: not is_alive(stage), 5)


@IS_WARM
def test_a_stage_does_not_outlive_a_killed_run(folder: Path, is_warm: bool) -> None:
    process = start_run(folder, "slow", is_warm=is_warm)
    stage = int((folder / "run" / "slow.pid").read_text())
    starter = parent_of(stage)
    assert (starter == process.pid) == (not is_warm)
    process.kill()
    process.communicate(timeout=5)
    wait_for(lambda: not is_alive(stage), 10)
    wait_for(lambda: not is_alive(starter), 10)


def test_a_stage_does_not_outlive_a_killed_warm_process(folder: Path) -> None:
    process = start_run(folder, "slow", is_warm=True)
    stage = int((folder / "run" / "slow.pid").read_text())
    os.kill(parent_of(stage), signal.SIGKILL)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == SetupError.exit_code, out
    assert "the system killed the model stage" in out
    wait_for(lambda: not is_alive(stage), 10)
