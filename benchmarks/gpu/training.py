"""posttrain's training on one GPU: FSDP2 with one NCCL rank, and a whole tiny run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp

import torch
from packaging.version import Version
from safetensors.torch import load_file

from benchmarks.gpu.cases import Case, Found, NotMeasured, Setting, relative_error
from benchmarks.gpu.sft_run import STEPS
from posttrain.models.tiny import write_tiny_llama4
from posttrain.pipeline.launch import accelerate_config, fsdp_environment
from posttrain.recipe.schema import Recipe
from posttrain.tables import read_json, read_metrics

FORMATS = ("bf16", "fp8", "nf4")
SECONDS, SECONDS_ON_CPU = 120, 500
"""For one process of a tiny model."""
SHARDS_BYTES = Version("2.13")
"""The version that posttrain asks for; 2.11 casts quantized weights with the others."""
ROOT = Path(__file__).parent.parent.parent
SHARDED = {"model": {"base": "x"}, "launch": {"num_processes": 1, "strategy": "fsdp"}}


def cases(setting: Setting) -> Mapping[str, Case]:
    """Sharded against whole training in each format, then all stages of a recipe."""
    found: dict[str, Case] = {
        f"SFT, FSDP2 against one plain process, {format}": partial(fsdp, setting, format)
        for format in FORMATS
    }
    for format in FORMATS[1:]:
        found[f"SFT, one plain process, {format}"] = partial(plain, setting, format)
    found["a tiny recipe to the end of RL, engine: transformers"] = partial(whole_run, setting)
    return found


@cache
def folder() -> Path:
    """Make one folder for the process, with the tiny model in `base`."""
    made = Path(mkdtemp(prefix="posttrain-gpu-"))
    write_tiny_llama4(made / "base")
    return made


def fsdp(setting: Setting, format: str) -> Found:
    """Train twice with the same seed and compare losses and adapters."""
    if format != "bf16" and Version(torch.__version__) < SHARDS_BYTES:
        raise NotMeasured(f"FSDP of torch {torch.__version__} casts bytes, that of 2.13 does not")
    config = folder() / "fsdp.yaml"
    config.write_text(accelerate_config(Recipe.model_validate(SHARDED)))
    accelerate = ("-m", "accelerate.commands.launch", "--main_process_port", "0")
    ways: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {
        "plain": ((*accelerate, "--num_processes", "1"), {}),
        "fsdp": ((*accelerate, "--config_file", str(config)), {}),
    }
    if not setting.is_cuda:
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1")
        ways = {"plain": ((), {}), "fsdp": (torchrun, fsdp_environment())}
    outs: dict[str, Path] = {}
    processes: dict[str, subprocess.Popen[str]] = {}
    for way, (launcher, environment) in ways.items():
        outs[way] = folder() / f"{format}-{way}"
        ours = ("-m", "benchmarks.gpu.sft_run", str(folder() / "base"), str(outs[way]), format)
        processes[way] = start([sys.executable, *launcher, *ours], environment)
    try:
        for way, process in processes.items():
            finish(process, way, setting)
    finally:
        for process in processes.values():
            process.kill()
    losses = {way: losses_of(out) for way, out in outs.items()}
    apart = max(abs(a - b) for a, b in zip(losses["plain"], losses["fsdp"], strict=True))
    plain, sharded = (
        load_file(outs[way] / "policy" / "adapter_model.safetensors") for way in ("plain", "fsdp")
    )
    if plain.keys() != sharded.keys():
        raise NotMeasured(f"the adapters' tensors differ: {plain.keys() ^ sharded.keys()}")
    moved = [relative_error(sharded[name], plain[name]) for name in plain if "lora_B" in name]
    return Found(
        text=f"loss {losses['plain'][0]:.3f} to {losses['plain'][-1]:.3f} in {STEPS} steps, "
        f"at most {apart:.1e} apart; adapters' B at most {max(moved):.1e} apart",
        figures={"losses": losses, "largest_loss_difference": apart, "adapter_errors": moved},
    )


def plain(setting: Setting, format: str) -> Found:
    """Train in one process on quantized weights."""
    accelerate = ("-m", "accelerate.commands.launch", "--main_process_port", "0")
    launcher = (*accelerate, "--num_processes", "1") if setting.is_cuda else ()
    out = folder() / f"{format}-one"
    ours = ("-m", "benchmarks.gpu.sft_run", str(folder() / "base"), str(out), format)
    finish(start([sys.executable, *launcher, *ours], {}), "SFT", setting)
    losses = losses_of(out)
    return Found(
        text=f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {STEPS} steps",
        figures={"losses": losses},
    )


def start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a process whose output can be read."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "TQDM_DISABLE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], way: str, setting: Setting) -> None:
    """Wait for a process; raise NotMeasured with its last words where it failed."""
    limit = SECONDS if setting.is_cuda else SECONDS_ON_CPU
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise NotMeasured(f"{way}: took longer than {limit} s") from None
    if process.returncode != 0:
        print(said[-8000:], file=sys.stderr)
        lines = [line for line in said.splitlines() if "Error" in line or "error" in line]
        errors = [line for line in lines if "ChildFailedError" not in line]
        last = (errors or said.strip().splitlines() or ["no output"])[-1].strip()
        raise NotMeasured(f"{way}: exit code {process.returncode}: {last}")


def losses_of(out: Path) -> list[float]:
    """Return the loss of every step."""
    return [row["sft/loss"] for row in read_metrics(out / "metrics.jsonl") if "sft/loss" in row]


def whole_run(setting: Setting) -> Found:
    """Run SFT and RL of a tiny model through the pipeline, as users start it."""
    rows = folder() / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"prompt": f"What is {i % 7} + {i // 7}?", "answer": str(i % 7 + i // 7)})
            + "\n"
            for i in range(49)
        )
    )
    recipe = folder() / "recipe.yaml"
    recipe.write_text(RECIPE.format(base=folder() / "base", rows=rows))
    run_dir = folder() / "run"
    command = [sys.executable, "-m", "posttrain", "run", str(recipe), "--run-dir", str(run_dir)]
    # So few random answers seldom make a preference pair.
    command += ["--until", "rl"]
    finish(start(command, {}), "posttrain run", setting)
    stages = sorted((run_dir / "stages").iterdir())
    summaries = {
        stage.name: read_json(stage / "summary.json")
        for stage in stages
        if (stage / "summary.json").exists()
    }
    parity = [
        row["parity/mean"]
        for file in run_dir.glob("stages/*/parity.jsonl")
        for row in read_metrics(file)
    ]
    seconds = {name: round(s["seconds"], 1) for name, s in summaries.items() if "seconds" in s}
    return Found(
        text=f"{len(stages)} stages ended; training seconds {seconds}; engine and trainer at most "
        f"{max(parity, default=float('nan')):.1e} nats apart",
        figures={"summaries": summaries, "parity": parity},
    )


RECIPE = """\
model:
  base: {base}
  dtype: bfloat16
  lora: {{rank: 8, alpha: 16}}
engine: {{kind: transformers, max_model_len: 256, max_num_seqs: 16}}
sft:
  data: [{{path: {rows}, capability: sums, verifier: exact}}]
  trainer: {{max_steps: 8, per_device_train_batch_size: 8, learning_rate: 1e-2, logging_steps: 1}}
rl:
  data: [{{path: {rows}, capability: sums, verifier: exact}}]
  curriculum: curricula/adaptive.yaml
  trainer:
    num_generations: 4
    max_steps: 3
    save_steps: 1
    per_device_train_batch_size: 16
    max_completion_length: 8
    learning_rate: 1e-4
    logging_steps: 1
eval: {{heldout_size: 4, num_generations: 2, max_tokens: 8, pass_at: [2]}}
"""
