"""Compute stage keys: the recipe values that a stage depends on, and their hash.

Left out on purpose, because they decide how fast or how safely a stage runs and not what it writes,
so that a run that met a limit resumes with another setting instead of starting over:

- engine: max_num_seqs, gpu_memory_utilization, kv_cache_gib, enable_sleep_mode, concurrency,
  api_key_env, and parity_tolerance (it only stops a run);
- rl.offload_policy, and the curriculum's max_steps_without_signal (it only stops a run);
- sandbox.kind, image and url; its limits count, and only where code is verified;
- trainer blocks: save_*, logging_*, log_*, report_to, disable_tqdm, dataloader_*, ddp_timeout,
  push_to_hub, hub_*, gradient_checkpointing*;
- the recipe's name and comments.

launch does count for the training stages: num_processes multiplies the batch, and strategy decides
the form of checkpoints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import SetupError
from posttrain.pipeline.stage import Stage
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.problems import dotted
from posttrain.recipe.schema import Recipe, needs, user_functions
from posttrain.recipe.trainer_blocks import SharedBlock
from posttrain.records import content_hash
from posttrain.run_directory import FileHashes

ENGINE_KEYS_THAT_DO_NOT_MATTER = frozenset(
    {
        "max_num_seqs",
        "gpu_memory_utilization",
        "kv_cache_gib",
        "enable_sleep_mode",
        "concurrency",
        "api_key_env",
        "parity_tolerance",
    }
)
SANDBOX_KEYS_THAT_MATTER = ("wall_seconds", "memory_mib", "output_kib")
TRAINER_PREFIXES_THAT_DO_NOT_MATTER = (
    "save_",
    "logging_",
    "log_",
    "report_to",
    "disable_tqdm",
    "dataloader_",
    "ddp_timeout",
    "push_to_hub",
    "hub_",
    "gradient_checkpointing",
)


def engine_values(spec: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the engine keys that decide its answers."""
    if spec is None:
        return None
    return {k: v for k, v in spec.items() if k not in ENGINE_KEYS_THAT_DO_NOT_MATTER}


def answer_judge_values(loaded: LoadedRecipe) -> Mapping[str, Any]:
    """Return the keys that decide outcomes of `verifier: judge`; empty without an answer judge."""
    spec = loaded.written["answer_judge"]
    if spec is None:
        return {}
    return {"answer_judge": {**spec, "engine": engine_values(spec["engine"])}}


def sandbox_limits(loaded: LoadedRecipe) -> Mapping[str, Any]:
    """Return the sandbox limits, which decide outcomes of code; empty if none is verified."""
    if not needs(loaded.recipe, "sandbox"):
        return {}
    written = loaded.written["sandbox"]
    return {"sandbox": {name: written[name] for name in SANDBOX_KEYS_THAT_MATTER}}


def function_limits(loaded: LoadedRecipe, *sections: str) -> Mapping[str, Any]:
    """Return the limits of the user's own functions that verify rows of these sections."""
    limits = {
        dotted(path): function.model_dump(include={"wall_seconds", "memory_mib"})
        for path, function in user_functions(loaded.recipe)
        if path[0] in sections
    }
    return {"functions": limits} if limits else {}


def training_values(loaded: LoadedRecipe) -> Mapping[str, Any]:
    """Return the keys that all training stages depend on: model and launch."""
    written = loaded.written
    return {
        "model": {name: written["model"][name] for name in ("dtype", "lora", "frozen")},
        "launch": written["launch"],
    }


def trainer_values(loaded: LoadedRecipe, section: str) -> Mapping[str, Any]:
    """Return the trainer keys that decide the policy."""
    block: Mapping[str, Any] = loaded.written[section]["trainer"]
    return {
        key: value
        for key, value in block.items()
        if not key.startswith(TRAINER_PREFIXES_THAT_DO_NOT_MATTER)
    }


def batch_size(block: SharedBlock, recipe: Recipe) -> int:
    """Return the samples of one optimizer step, over all processes."""
    per_device = block.per_device_train_batch_size * block.gradient_accumulation_steps
    return per_device * recipe.launch.num_processes


def stage_key_parts(
    stage: Stage[Any],
    loaded: LoadedRecipe,
    section: Any,
    upstream: Mapping[str, str],
    hashes: FileHashes,
) -> dict[str, Any]:
    """Return what a stage's key is made of; `upstream` has the keys of stages before it."""
    return {
        "recipe": dict(stage.depends_on(loaded, section)),
        "seed": loaded.recipe.seed if stage.is_seeded else None,
        "inputs": {
            label: _input_hash(label, path, hashes) for label, path in stage.files(loaded).items()
        },
        "upstream": {name: upstream[name] for name in stage.reads if name in upstream},
        "version": stage.version,
    }


def stage_key(key_parts: Mapping[str, Any]) -> str:
    """Return the sha256 of the canonical JSON of a stage's key parts."""
    text = json.dumps(key_parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def stage_seed(stage: Stage[Any], recipe_seed: int) -> int:
    """Return a 31-bit seed derived from the recipe's seed and the stage's name."""
    return int(content_hash("stage seed", recipe_seed, stage.seed_name or stage.name)[:8], 16) >> 1


def changed_parts(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Describe the differences between two key parts, upstream stages last.

    >>> changed_parts({"recipe": {"sft": {"lr": 1}}}, {"recipe": {"sft": {"lr": 2}}})
    ['sft.lr 1 -> 2']
    """
    before, after = dict(_flat(old)), dict(_flat(new))
    differing = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    said: list[str] = []
    for path in sorted(differing, key=lambda p: p[0] == "upstream"):
        kind, name = path[0], ".".join(path[1:])
        was, now = before.get(path), after.get(path)
        if kind == "recipe":
            said.append(f"{name} {_short(was)} -> {_short(now)}")
        elif kind == "seed":
            said.append(f"seed {was} -> {now}")
        elif kind == "inputs":
            said.append(f"content of {name}")
        elif kind == "version":
            said.append(f"this stage's version {was} -> {now}")
        else:
            said.append(f"stage {name}")
    return said


def _input_hash(label: str, path: Path, hashes: FileHashes) -> str:
    try:
        return hashes.of_folder(path) if path.is_dir() else hashes.of(path)
    except OSError as error:
        raise SetupError(
            f"{label}: cannot read {path}: {error.strerror}",
            hint="put the file back or correct the path, then run the same command again",
        ) from error


def _flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, (*path, str(key)))
    else:
        yield path, value


def _short(value: Any) -> str:
    text = "(none)" if value is None else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
