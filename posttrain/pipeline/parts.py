"""Which values of a recipe decide what a stage writes; the rest may change without a re-run.

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

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from posttrain.recipe import LoadedRecipe
from posttrain.recipe.sources import needs

Part = dict[str, Any]

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


def model(loaded: LoadedRecipe) -> Part:
    written = loaded.written["model"]
    return {"model": {name: written[name] for name in ("base", "revision", "dtype")}}


def model_files(loaded: LoadedRecipe) -> Mapping[str, Path]:
    """The folder of a local base model."""
    return {key: path for key, path in loaded.files.items() if key.startswith("model.")}


def data(loaded: LoadedRecipe) -> Part:
    written = loaded.written
    part: Part = {"max_bad_rows": written["max_bad_rows"]}
    for section in ("sft", "rl"):
        if written[section] is not None:
            part[section] = {"data": written[section]["data"]}
    part["eval"] = {"suites": written["eval"]["suites"]}
    if "heldout" in written["eval"]["suites"]:
        part["eval"]["heldout_size"] = written["eval"]["heldout_size"]
    return part


def data_files(loaded: LoadedRecipe) -> Mapping[str, Path]:
    """The data files, which the recipe names by path."""
    return {key: path for key, path in loaded.files.items() if ".data." in key}


def evaluation(loaded: LoadedRecipe) -> Part:
    names = ("num_generations", "temperature", "max_tokens", "pass_at")
    return {
        "eval": {name: loaded.written["eval"][name] for name in names},
        "engine": _engine(loaded.written["engine"]),
        "model": {"dtype": loaded.written["model"]["dtype"]},
        **_answer_judge(loaded),
        **_sandbox(loaded),
    }


def judge(loaded: LoadedRecipe) -> Part:
    sft_section = loaded.written["sft"]
    return {
        "sft": {"judge": _values(loaded.judge), "pilot": sft_section["pilot"]},
        "rl": {"judge_prompts": (loaded.written["rl"] or {}).get("judge_prompts", False)},
        "engine": _engine(loaded.written["engine"]),
        "judge_engine": _engine(sft_section["judge_engine"]),
        "model": {"dtype": loaded.written["model"]["dtype"]},
        **_answer_judge(loaded),
        **_sandbox(loaded),
    }


def prune(loaded: LoadedRecipe) -> Part:
    return {"sft": {"prune": loaded.written["sft"]["prune"]}}


def sft(loaded: LoadedRecipe) -> Part:
    return {"sft": {"trainer": _trainer(loaded, "sft")}, **_training(loaded)}


def rl(loaded: LoadedRecipe) -> Part:
    return {
        "rl": {
            "curriculum": _curriculum(loaded),
            "trainer": _trainer(loaded, "rl"),
            **{
                name: loaded.written["rl"][name]
                for name in ("pilot_prompts", "system_prompts", "variants", "shaping")
            },
        },
        "engine": _engine(loaded.written["engine"]),
        **_training(loaded),
        **_answer_judge(loaded),
        **_sandbox(loaded),
    }


def _curriculum(loaded: LoadedRecipe) -> Part | None:
    values = _values(loaded.curriculum)
    return values and {k: v for k, v in values.items() if k != "max_steps_without_signal"}


def pairs(loaded: LoadedRecipe) -> Part:
    return {"dpo": {"pairs": loaded.written["dpo"]["pairs"]}}


def dpo(loaded: LoadedRecipe) -> Part:
    return {"dpo": {"trainer": _trainer(loaded, "dpo")}, **_training(loaded)}


def _training(loaded: LoadedRecipe) -> Part:
    written = loaded.written
    return {
        "model": {name: written["model"][name] for name in ("dtype", "lora", "frozen")},
        "launch": written["launch"],
    }


def _answer_judge(loaded: LoadedRecipe) -> Part:
    spec = loaded.written["answer_judge"]
    if spec is None:
        return {}
    return {
        "answer_judge": {
            **spec,
            "rubric": _values(loaded.rubric),
            "engine": _engine(spec["engine"]),
        }
    }


def answer_judge_files(loaded: LoadedRecipe) -> Mapping[str, Path]:
    """The judge's model folder and its calibration answers."""
    keys = ("answer_judge.model", "answer_judge.calibration")
    return {key: path for key, path in loaded.files.items() if key in keys}


def _engine(spec: Mapping[str, Any] | None) -> Part | None:
    if spec is None:
        return None
    return {k: v for k, v in spec.items() if k not in ENGINE_KEYS_THAT_DO_NOT_MATTER}


def _sandbox(loaded: LoadedRecipe) -> Part:
    """Limits decide outcomes; which sandbox holds them does not."""
    if not needs(loaded.recipe, "code"):
        return {}
    written = loaded.written["sandbox"]
    return {"sandbox": {name: written[name] for name in SANDBOX_KEYS_THAT_MATTER}}


def _trainer(loaded: LoadedRecipe, section: str) -> Part:
    block: Mapping[str, Any] = loaded.written[section]["trainer"]
    return {
        key: value
        for key, value in block.items()
        if not key.startswith(TRAINER_PREFIXES_THAT_DO_NOT_MATTER)
    }


def _values(spec: BaseModel | None) -> Part | None:
    return None if spec is None else spec.model_dump(mode="json", by_alias=True)
