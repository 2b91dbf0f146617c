"""The stages of one recipe, with functions that need no model."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from posttrain.errors import HealthStop
from posttrain.kill_points import kill_point
from posttrain.pipeline import STAGES, Stage
from posttrain.pipeline.stage import Counts, StageContext
from posttrain.progress import note, progress
from posttrain.recipe import LoadedRecipe, load_recipe
from posttrain.recipe.schema import Recipe
from posttrain.records import content_hash
from posttrain.tables import file_sha256, read_json, write_bytes, write_json

NUM_STEPS = 3

RECIPE = """\
name: toy
seed: 7
model:
  base: ./base
  dtype: float32
  lora: {rank: 4}
engine: {kind: transformers}
sft:
  data: [{path: sft.jsonl, capability: math, verifier: exact}]
  judge: judge.yaml
  trainer: {learning_rate: 1.0e-4}
rl:
  data: [{path: rl.jsonl, capability: math, verifier: exact}]
  curriculum: curriculum.yaml
  trainer: {num_generations: 4}
dpo:
  trainer: {beta: 0.1}
eval: {heldout_size: 4, num_generations: 4, pass_at: [4]}
"""
FILES = {
    "recipe.yaml": RECIPE,
    "judge.yaml": "kind: answer_likelihood\nscale_nats: 1.0\n",
    "curriculum.yaml": "kind: difficulty_pools\nhard: 0.1\nnormal: 0.9\n",
    "sft.jsonl": '{"question": "1+1", "answer": "2"}\n',
    "rl.jsonl": '{"question": "1+2", "answer": "3"}\n',
    "base/config.json": "{}",
    "base/model.safetensors": "weights",
}


def write_recipe(folder: Path) -> Path:
    """A recipe with every stage and the files that it names."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "recipe.yaml"


def load(folder: Path, *overrides: str) -> LoadedRecipe:
    """The recipe of `write_recipe`, loaded."""
    return load_recipe(folder / "recipe.yaml", overrides)


def toy(context: StageContext, section: Any = None) -> Counts:
    """Write a hash of seed and inputs, in three steps that a checkpoint remembers."""
    state = context.work_dir / "state.json"
    chain = read_json(state) if state.exists() else []
    for step in range(len(chain), NUM_STEPS):
        inputs = {name: file_sha256(path / "out.json") for name, path in context.inputs.items()}
        chain.append(content_hash(context.stage, context.seed, step, inputs, chain))
        write_json(state, chain)
        kill_point(f"{context.stage}.after_step")
    write_json(context.out_dir / "out.json", {"chain": chain})
    (context.out_dir / "deep").mkdir()
    (context.out_dir / "deep" / "notes.txt").write_text("kept")
    with (context.run_dir / "calls.log").open("a") as log:
        log.write(context.stage + "\n")
    return {"steps": NUM_STEPS}


def slow(context: StageContext, section: Any = None) -> Counts:
    """Work until somebody stops it."""
    write_json(context.work_dir / "state.json", ["begun"])
    write_bytes(context.run_dir / "slow.pid", str(os.getpid()).encode())
    time.sleep(60)
    return {}


def deaf(context: StageContext, section: Any = None) -> Counts:
    """Work on whatever the first signal says."""
    for _ in range(2):
        try:
            # Inside: the signal may come as soon as the file is there.
            write_bytes(context.run_dir / "slow.pid", str(os.getpid()).encode())
            time.sleep(60)
        except KeyboardInterrupt:
            (context.run_dir / "heard").write_text("yes")
    return {}


def unhealthy(context: StageContext, section: Any = None) -> Counts:
    """Stop for health."""
    raise HealthStop("loss is nan at step 3", hint="lower sft.trainer.learning_rate")


class TooBad(HealthStop):
    """A kind of HealthStop that posttrain.errors does not know, as data.BadRows is."""


def too_bad(context: StageContext, section: Any = None) -> Counts:
    """Stop for health with an error of one's own."""
    raise TooBad("3 of 4 rows are unusable", hint="mend the rows")


def buggy(context: StageContext, section: Any = None) -> Counts:
    """Print, and fail as bugs do."""
    print("as libraries do")
    raise IndexError("list index out of range")


def full_disk(context: StageContext, section: Any = None) -> Counts:
    """Write to a disk without space: the kernel says ENOSPC."""
    with Path("/dev/full").open("w") as disk:
        disk.write("x" * 10_000)
    return {}


def killed(context: StageContext, section: Any = None) -> Counts:
    """Die as the out-of-memory killer has it."""
    os.kill(os.getpid(), 9)
    return {}


def multi(context: StageContext, section: Any = None) -> Counts:
    """Leave a mark per process."""
    rank = os.environ.get("RANK", "0")
    (context.run_dir / f"rank-{rank}-of-{os.environ.get('WORLD_SIZE', '1')}").touch()
    return {}


def names() -> list[str]:
    """The stages that RECIPE has, in order."""
    parsed = YAML(typ="safe").load(RECIPE)
    parsed["sft"]["judge"] = {"kind": "answer_likelihood"}
    parsed["rl"]["curriculum"] = {"kind": "uniform"}
    recipe = Recipe.model_validate(parsed)
    return [stage.name for stage in STAGES if stage.section(recipe) is not None]


def table(*, loads_models: bool = False, **functions: str) -> Sequence[Stage[Any]]:
    """The stages of RECIPE with toy functions; name one (`_` for `-`) to give it another function.

    With `loads_models` stages are forked from a warm process.
    """
    here = sys.modules[__name__]
    return [
        dataclasses.replace(
            stage,
            run=getattr(here, functions.get(stage.name.replace("-", "_"), "toy")),
            loads_models=loads_models,
        )
        for stage in STAGES
        if stage.name in names()
    ]


def noisy(context: StageContext, _section: Any = None) -> Counts:
    """Print as libraries do, speak as posttrain does, and stop."""
    print("noise on standard output")
    print("noise on standard error", file=sys.stderr)
    os.write(2, b"noise from below\n")
    note("a word to the user")
    with progress("toys", total=1) as bar:
        bar.advance()
    raise HealthStop("stopped", hint="nothing")


def parent(context: StageContext, _section: Any = None) -> Counts:
    """Say who started the stage."""
    write_json(context.out_dir / "out.json", {"parent": os.getppid(), "pid": os.getpid()})
    return {}
