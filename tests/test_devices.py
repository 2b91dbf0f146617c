"""Training with two processes, DDP and FSDP2 over gloo, through the pipeline."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import RunServer

from posttrain.models.tiny import write_tiny_llama4
from posttrain.pipeline import STAGES
from posttrain.pipeline.launch import FSDP, fsdp_environment, launch_line
from posttrain.tables import read_json, read_metrics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "tiny.yaml"
SETTINGS = (
    *("sft.judge=null", "eval.after=[]", "sft.trainer.save_steps=8"),
    "dpo.trainer.learning_rate=1e-3",
)
WAYS = {
    "one": ("sft.trainer.per_device_train_batch_size=8",),
    "ddp": ("sft.trainer.per_device_train_batch_size=4", "launch.num_processes=2"),
    "fsdp": (
        "sft.trainer.per_device_train_batch_size=4",
        "launch.num_processes=2",
        "launch.strategy=fsdp",
    ),
}
KILL_POINTS = {"sft.after_step:13": 8, "sft.before_marker:2": 8, "sft.after_save": 24}
"""Where both processes die -> the checkpoint's step that a re-run goes on from."""
FROZEN = ("none", "fp8", "nf4")
Runner = Callable[..., Path]


@pytest.fixture(scope="module")
def run(
    tiny_llama4: Path, run_server: RunServer, tmp_path_factory: pytest.TempPathFactory
) -> Runner:
    """Run recipes/tiny.yaml one way; what has no name of its own is run once.

    From a process that has everything imported, or `as_users_do`: by the command and torchrun.
    """
    folder = tmp_path_factory.mktemp("runs")
    unnamed: set[Path] = set()

    def start(
        way: str,
        *more: str,
        until: str | None = None,
        name: str | None = None,
        kill_at: str = "",
        as_users_do: bool = False,
    ) -> Path:
        run_dir = folder / (name or way)
        if run_dir in unnamed:
            return run_dir
        if name is None:
            unnamed.add(run_dir)
        settings = (f"model.base={tiny_llama4}", *SETTINGS, *WAYS[way], *more)
        if not as_users_do:
            run_server.run_recipe(RECIPE, run_dir, kill_at=kill_at, overrides=settings, until=until)
            return run_dir
        command = [sys.executable, "-m", "posttrain", "run", str(RECIPE)]
        command += [word for setting in settings for word in ("--set", setting)]
        command += ["--until", until] if until else []
        done = subprocess.run(
            [*command, "--run-dir", str(run_dir)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "POSTTRAIN_KILL_AT": kill_at},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert (done.returncode != 0) == bool(kill_at), done.stdout[-3000:] + done.stderr[-3000:]
        return run_dir

    return start


def adapter(run_dir: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "stages" / stage / "policy" / "adapter_model.safetensors")


def losses(run_dir: Path) -> list[float]:
    rows = read_metrics(run_dir / "stages" / "6-sft" / "metrics.jsonl")
    return [row["sft/loss"] for row in rows if "sft/loss" in row]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_all_three_stages_train_to_the_end(run: Runner, way: str) -> None:
    run_dir = run(way)
    for stage, steps in (("6-sft", 24), ("8-rl", 3), ("11-dpo", 2)):
        assert read_json(run_dir / "stages" / stage / "summary.json")["steps"] == steps
    parity = read_metrics(run_dir / "stages" / "8-rl" / "parity.jsonl")
    assert [row["step"] for row in parity] == [1, 2]
    assert all(row["parity/mean"] < 1e-4 for row in parity)
    before, after = adapter(run_dir, "8-rl"), adapter(run_dir, "11-dpo")
    assert before.keys() == after.keys()
    assert all(not after[name].equal(before[name]) for name in after)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_train_as_one_with_the_same_global_batch(run: Runner, way: str) -> None:
    one, two = run("one", until="sft"), run(way)
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    expected, found = adapter(one, "6-sft"), adapter(two, "6-sft")
    assert found.keys() == expected.keys()
    moved = [t for name, t in expected.items() if "lora_B" in name]
    assert min(float(t.abs().max()) for t in moved) > 1e-3
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=2e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("kill_at", KILL_POINTS)
def test_two_killed_processes_go_on_from_their_checkpoint(
    run: Runner, way: str, kill_at: str
) -> None:
    unbroken = run(way)
    name = f"{way}-{kill_at.replace(':', '-')}"
    shutil.copytree(
        unbroken,
        unbroken.with_name(name),
        ignore=shutil.ignore_patterns("6-sft", "[1789][0-9-]*-*"),
    )
    run(way, until="sft", name=name, kill_at=kill_at)
    broken = run(way, until="sft", name=name)
    resumed = read_json(broken / "stages" / "6-sft" / "summary.json")["resumed_from_step"]
    assert resumed == KILL_POINTS[kill_at]
    expected, found = adapter(unbroken, "6-sft"), adapter(broken, "6-sft")
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, atol=1e-6, rtol=1e-5, msg=key)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_killed_during_rl_go_on_from_their_checkpoint(run: Runner, way: str) -> None:
    unbroken = run(way)
    name = f"{way}-rl"
    shutil.copytree(
        unbroken, unbroken.with_name(name), ignore=shutil.ignore_patterns("8-rl", "1[0-9]-*")
    )
    # Once is enough, and the start takes long; the unbroken run was not started so.
    how = {"until": "rl", "name": name, "as_users_do": way == "fsdp"}
    run(way, kill_at="rl.after_rollouts:3", **how)
    broken = run(way, **how)
    assert read_json(broken / "stages" / "8-rl" / "summary.json")["resumed_from_step"] == 2
    expected, found = adapter(unbroken, "8-rl"), adapter(broken, "8-rl")
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, atol=1e-6, rtol=1e-5, msg=key)


@pytest.mark.usefixtures("spanning_engine")
@pytest.mark.parametrize("sync", ["weights", "adapter"])
def test_a_sharded_policy_reaches_vllm(run: Runner, tmp_path: Path, sync: str) -> None:
    """As weights to one engine on both processes; as an adapter to an engine each."""
    pytest.importorskip("vllm")
    asked = ["engine.kind=vllm", "engine.kv_cache_gib=1", "sft.trainer.max_steps=4", "dpo=null"]
    if sync == "weights":
        asked.append("engine.tensor_parallel_size=2")
    else:
        base = write_tiny_llama4(tmp_path / "base", interleave_moe_layer_step=5)
        asked += [f"model.base={base}", "model.lora.targets=[attention,mlp]", "engine.sync=adapter"]
    run_dir = run("fsdp", *asked, until="rl", name=f"vllm-{sync}")
    parity = read_metrics(run_dir / "stages" / "8-rl" / "parity.jsonl")
    assert [row["step"] for row in parity] == [1, 2]
    assert all(row["parity/mean"] < 1e-4 for row in parity)


@pytest.fixture(scope="module")
def sharded(tiny_llama4: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each way to keep frozen weights, with what two processes said of themselves."""
    folder = tmp_path_factory.mktemp("sharded")
    done = subprocess.run(
        [
            *("env", *(f"{k}={v}" for k, v in fsdp_environment().items()), sys.executable, "-m"),
            *("torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *(str(ROOT / "tests" / "distributed_frozen.py"), str(tiny_llama4), str(folder)),
            *FROZEN,
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("frozen", FROZEN)
def test_sharding_leaves_frozen_weights_as_they_are(sharded: Path, frozen: str) -> None:
    """In bfloat16: their dtype, their bytes, one shard each, and every decoder layer a unit."""
    for rank in range(2):
        found = read_json(sharded / frozen / f"rank-{rank}.json")
        assert found["layers"] == 4
        assert found["changed"] == []
        assert found["trained_dtypes"] == ["torch.float32"]
        frozen_dtypes = ["torch.bfloat16"] + ["torch.uint8"] * (frozen != "none")
        assert found["frozen_dtypes"] == frozen_dtypes
        assert found["num_exported"] > 0
        assert found["exported_dtypes"] == ["torch.bfloat16"]
        # The embedding's rows divide evenly, the rest nearly so.
        assert 0.4 < found["share"] < 0.6
        assert found["on_meta"] == (rank != 0)


def test_accelerates_own_launcher_reads_our_file_as_the_environment_says(tmp_path: Path) -> None:
    """The file is for CUDA, the environment for the CPU: accelerate itself translates one."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    from posttrain.pipeline.launch import ACCELERATE_CONFIG, accelerate_config
    from posttrain.recipe.schema import Recipe

    recipe = Recipe.model_validate(
        {"model": {"base": "x"}, "launch": {"num_processes": 2, "strategy": "fsdp"}}
    )
    (tmp_path / ACCELERATE_CONFIG).write_text(accelerate_config(recipe))
    words = ["--config_file", str(tmp_path / ACCELERATE_CONFIG), "script.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert arguments.use_fsdp
    assert arguments.num_processes == 2
    assert arguments.mixed_precision == "bf16"
    told = prepare_multi_gpu_env(arguments)
    assert {name: told[name] for name in fsdp_environment()} == fsdp_environment()


def test_fsdp_needs_several_processes_and_a_training_stage() -> None:
    stages = {stage.name: stage for stage in STAGES}
    one = launch_line(stages["sft"], Path("runs/a"), 1, strategy="fsdp")
    judge = launch_line(stages["judge"], Path("runs/a"), 2, strategy="fsdp")
    assert not any(key.upper() in " ".join(one + judge) for key in FSDP)
