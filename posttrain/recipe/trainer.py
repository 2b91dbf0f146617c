"""The base class of the generated trainer blocks, and the keys that posttrain keeps to itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import SerializerFunctionWrapHandler, field_validator, model_serializer

from posttrain.spec import Spec, wrong

DEFAULTS: Mapping[str, Any] = {
    "save_strategy": "steps",
    "save_steps": 0.2,
    "save_total_limit": 2,
    "logging_steps": 1.0,
    "report_to": "none",
    "DPOConfig.num_train_epochs": 1.0,
}
"""Defaults of posttrain's own: five checkpoints per run, a row of metrics per step, light DPO."""

_RUN_DIRECTORY = "the run directory decides it"
_FROZEN_REFERENCE = "the reference model is frozen: checkpoints do not hold one that moves"
_NO_EVALUATION = "the eval section decides what is measured"
_OWN_DATA_SET = "posttrain builds the trainer's data set"
_ENGINE_SAMPLES = "the engine samples with temperature and top_p"
_ENGINE_GENERATES = "the engine generates, not the trainer"
_ONE_REWARD = "the verifier is the only reward"
_DEVICE = "it follows the device that the stage runs on"

MANAGED: Mapping[str, str] = {
    "output_dir": _RUN_DIRECTORY,
    "logging_dir": _RUN_DIRECTORY,
    "run_name": "set `name` at the top of the recipe",
    "seed": "set `seed` at the top of the recipe",
    "data_seed": "set `seed` at the top of the recipe",
    "bf16": "it follows model.dtype",
    "fp16": "set model.dtype",
    "bf16_full_eval": "it follows model.dtype",
    "fp16_full_eval": "set model.dtype",
    "use_cpu": _DEVICE,
    "dataloader_pin_memory": _DEVICE,
    "disable_tqdm": "posttrain has a progress bar of its own",
    "model_init_kwargs": "the model section decides how the model is loaded",
    "trust_remote_code": "posttrain runs no code from checkpoints",
    "resume_from_checkpoint": "run the same command again to resume",
    "logging_nan_inf_filter": "a loss that is no number must stop the run",
    "save_only_model": "a run could not be resumed",
    "sync_ref_model": _FROZEN_REFERENCE,
    "ref_model_mixup_alpha": _FROZEN_REFERENCE,
    "ref_model_sync_steps": _FROZEN_REFERENCE,
    "load_best_model_at_end": "a stage ends with its last weights; the eval section measures them",
    "do_train": "the recipe's sections decide what runs",
    "do_eval": _NO_EVALUATION,
    "do_predict": _NO_EVALUATION,
    "eval_strategy": _NO_EVALUATION,
    "eval_steps": _NO_EVALUATION,
    "eval_on_start": _NO_EVALUATION,
    "parallelism_config": "set launch.num_processes and launch.strategy",
    "remove_unused_columns": _OWN_DATA_SET,
    "dataset_text_field": f"{_OWN_DATA_SET}: see data.columns",
    "dataset_kwargs": _OWN_DATA_SET,
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

MANAGED_IN_RL: Mapping[str, str] = {
    "generation_kwargs": _ENGINE_SAMPLES,
    "top_k": _ENGINE_SAMPLES,
    "min_p": _ENGINE_SAMPLES,
    "repetition_penalty": _ENGINE_SAMPLES,
    "cache_implementation": _ENGINE_GENERATES,
    "use_transformers_continuous_batching": _ENGINE_GENERATES,
    "transformers_continuous_batching_config": _ENGINE_GENERATES,
    "use_transformers_paged": _ENGINE_GENERATES,
    "ds3_gather_for_generation": _ENGINE_GENERATES,
    "chat_template_kwargs": "the model's own chat template is used",
    "num_generations_eval": "set eval.num_generations",
    "shuffle_dataset": "the curriculum decides the order",
    "reward_weights": _ONE_REWARD,
    "multi_objective_aggregation": _ONE_REWARD,
    "auto_find_batch_size": "set per_device_train_batch_size",
    "log_completions_hub_repo": "rollouts stay in the run directory",
}

MANAGED_PREFIXES: Mapping[str, str] = {
    "hub_": "publish the final policy from the run directory",
    "vllm_importance_sampling_": "the loss's ratio is to the log-probabilities of the engine that "
    "sampled; epsilon, epsilon_high and delta bound it",
    "vllm_": "set it in the engine section",
}
"""Prefixes of keys that posttrain sets itself -> the hint; the first that matches is used."""


class TrainerBlock(Spec):
    """The keys of one of TRL's config classes that a recipe may set."""

    config_class: ClassVar[str]
    """Its name in the package `trl`."""

    @classmethod
    def reserved(cls, key: str) -> str | None:
        """Return where to set a key that posttrain sets itself; None for any other key."""
        if cls.config_class == "GRPOConfig" and key in MANAGED_IN_RL:
            return MANAGED_IN_RL[key]
        if key in MANAGED:
            return MANAGED[key]
        return next((why for start, why in MANAGED_PREFIXES.items() if key.startswith(start)), None)

    def arguments(self) -> dict[str, Any]:
        """Return what to call the config class with: the keys that are set, our own defaults."""
        names = {key.removeprefix(f"{self.config_class}.") for key in DEFAULTS}
        return {name: getattr(self, name) for name in names if "." not in name} | self.model_dump()

    @field_validator("max_steps", check_fields=False)
    @classmethod
    def _some_steps(cls, steps: int) -> int:
        if steps == 0 or steps < -1:
            raise wrong(f"must be at least 1, or -1 for num_train_epochs, is {steps}")
        return steps

    @model_serializer(mode="wrap")
    def given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the keys that the recipe sets; TRL's own defaults hold for the others."""
        return {key: value for key, value in dump(self).items() if key in self.model_fields_set}
