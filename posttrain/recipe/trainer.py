"""The `trainer` blocks against TRL's own config classes.

The classes are read from their source, so that `posttrain check` answers at once and still knows
the names and types of the very version that is installed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

from posttrain.recipe.annotations import YamlType, yaml_types
from posttrain.recipe.check import Places, expected_instead, unknown_key
from posttrain.recipe.problems import Fault, Path, nearest, show
from posttrain.recipe.source import SourceField, class_fields
from posttrain.recipe.trainer_limits import value_faults

Stage = Literal["sft", "rl", "dpo"]

CONFIG_CLASSES: Mapping[Stage, tuple[str, str]] = {
    "sft": ("trl/trainer/sft_config.py", "SFTConfig"),
    "rl": ("trl/trainer/grpo_config.py", "GRPOConfig"),
    "dpo": ("trl/trainer/dpo_config.py", "DPOConfig"),
}

ALSO_TAKEN = {
    # GRPOConfig and DPOConfig turn these into what they are annotated with.
    ("rl", "scale_rewards"): "bool",
    ("dpo", "loss_type"): "str",
}

RUN_DIRECTORY = "the run directory decides it"
FROZEN_REFERENCE = (
    "the reference is frozen: a moved one is in no checkpoint, so no run could resume"
)
MANAGED: dict[str, str] = {
    "output_dir": RUN_DIRECTORY,
    "logging_dir": RUN_DIRECTORY,
    "run_name": "set `name` at the top of the recipe",
    "seed": "set `seed` at the top of the recipe",
    "data_seed": "set `seed` at the top of the recipe",
    "bf16": "it follows model.dtype",
    "fp16": "set model.dtype",
    "bf16_full_eval": "it follows model.dtype",
    "fp16_full_eval": "set model.dtype",
    "model_init_kwargs": "the model section decides how the model is loaded",
    "trust_remote_code": "posttrain runs no code from checkpoints",
    "resume_from_checkpoint": "run the same command again to resume",
    "logging_nan_inf_filter": "a loss that is no number must stop the run",
    "save_only_model": "a run could not be resumed",
    "sync_ref_model": FROZEN_REFERENCE,
    "ref_model_mixup_alpha": FROZEN_REFERENCE,
    "ref_model_sync_steps": FROZEN_REFERENCE,
    "load_best_model_at_end": "a stage ends with its last weights; the eval section measures them",
    "do_train": "the recipe's sections decide what runs",
    "do_eval": "the eval section decides what is measured",
    "do_predict": "the eval section decides what is measured",
    "eval_strategy": "the eval section decides what is measured",
    "eval_steps": "the eval section decides what is measured",
    "eval_on_start": "the eval section decides what is measured",
    "remove_unused_columns": "posttrain builds the trainer's data set",
    "dataset_text_field": "posttrain builds the trainer's data set: see data.columns",
    "dataset_kwargs": "posttrain builds the trainer's data set",
    "truncation_mode": "rows longer than max_length are left out whole, and none is cut",
    "chat_template_path": "the model's own chat template is used",
    "completion_only_loss": "the loss is on the answers only",
    "assistant_only_loss": "the loss is on the answers only",
    "push_to_hub": "publish the final policy from the run directory",
    "hub_token": "no secret belongs in a recipe",
    "local_rank": "set launch.num_processes",
    "use_vllm": "set engine.kind",
    "vllm_mode": "set engine.kind",
    "vllm_gpu_memory_utilization": "set engine.gpu_memory_utilization",
    "vllm_max_model_length": "set engine.max_model_len",
}
"""Keys of TRL that posttrain sets itself -> where the wish belongs."""

MANAGED_RL: dict[str, str] = {
    "generation_kwargs": "the engine samples with temperature and top_p",
    "top_k": "the engine samples with temperature and top_p",
    "min_p": "the engine samples with temperature and top_p",
    "repetition_penalty": "the engine samples with temperature and top_p",
    "cache_implementation": "the engine generates, not the trainer",
    "use_transformers_continuous_batching": "the engine generates, not the trainer",
    "transformers_continuous_batching_config": "the engine generates, not the trainer",
    "use_transformers_paged": "the engine generates, not the trainer",
    "ds3_gather_for_generation": "the engine generates, not the trainer",
    "chat_template_kwargs": "the model's own chat template is used",
    "num_generations_eval": "set eval.num_generations",
    "shuffle_dataset": "the curriculum decides the order",
    "reward_weights": "the verifier is the only reward",
    "multi_objective_aggregation": "the verifier is the only reward",
    "auto_find_batch_size": "set per_device_train_batch_size",
    "log_completions_hub_repo": "rollouts stay in the run directory",
}

MANAGED_PREFIXES = {
    "hub_": "publish the final policy from the run directory",
    "vllm_importance_sampling_": "the loss's ratio is to the log-probabilities of the engine that "
    "sampled; epsilon, epsilon_high and delta bound it",
    "vllm_": "set it in the engine section",
}
"""The first that fits counts."""


def managed(stage: Stage, key: str) -> str | None:
    """Why a trainer key may not be set and where to say it instead, or None where it may."""
    if stage == "rl" and key in MANAGED_RL:
        return MANAGED_RL[key]
    if key in MANAGED:
        return MANAGED[key]
    return next(
        (where for prefix, where in MANAGED_PREFIXES.items() if key.startswith(prefix)), None
    )


@functools.cache
def trainer_fields(stage: Stage) -> dict[str, SourceField]:
    """Every key of the stage's TRL config class, inherited ones included."""
    file, name = CONFIG_CLASSES[stage]
    return class_fields(file, name)


def check_trainer(
    stage: Stage, block: Mapping[str, Any], places: Places
) -> tuple[dict[str, Any], list[Fault]]:
    """The block, whole numbers made floats where TRL wants floats, and what is wrong with it."""
    known = trainer_fields(stage)
    allowed = [key for key in known if managed(stage, key) is None]
    checked: dict[str, Any] = {}
    faults: list[Fault] = []
    for key, value in block.items():
        path = (stage, "trainer", key)
        if key not in known:
            faults.append(unknown_key(path, allowed, places))
        elif (where := managed(stage, key)) is not None:
            faults.append(Fault(path=path, message=f"posttrain sets this itself: {where}"))
        else:
            found = _check_value(stage, known[key], value)
            if isinstance(found, Fault):
                faults.append(found)
            else:
                checked[key] = found[0]
    for key, message, near in value_faults(stage, checked):
        path = (stage, "trainer", key)
        faults.append(Fault(path=path, message=message, suggestion=near))
    return checked, faults


def _check_value(stage: Stage, field: SourceField, value: Any) -> tuple[Any] | Fault:
    kinds = yaml_types(field.annotation)
    if extra := ALSO_TAKEN.get((stage, field.name)):
        kinds.append(YamlType(name=extra))
    path = (stage, "trainer", field.name)
    return fit_value(path, kinds, field.choices, value)


def fit_value(
    path: Path, kinds: list[YamlType], choices: tuple[str, ...] | None, value: Any
) -> tuple[Any] | Fault:
    """The value as one of `kinds`, whole numbers made floats where only floats are taken."""
    if isinstance(value, float) and not math.isfinite(value):
        return Fault(path=path, message=f"expected a finite number, found {show(value)}")
    values = next((kind.values for kind in kinds if kind.values is not None), choices)
    if values is not None and isinstance(value, str) and value not in values:
        near = nearest(value, values)
        shown = ", ".join(values) if near is None or len(values) <= 16 else f"TRL's {len(values)}"
        message = f"expected one of {shown}, found {show(value)}"
        return Fault(path=path, message=message, suggestion=near)
    names = [kind.name for kind in kinds if kind.takes(value)]
    if names:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return (float(value) if whole and names[0] == "float" and "int" not in names else value,)
    words = " or ".join(dict.fromkeys(kind.words for kind in kinds if kind.words))
    return Fault(path=path, message=expected_instead(words or "what only Python can say", value))
