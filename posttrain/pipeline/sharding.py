"""What accelerate is told where launch.strategy is fsdp: a file, or the same as environment."""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.recipe.schema import Recipe

CONFIG = "accelerate.yaml"

FSDP: Mapping[str, str] = {
    "fsdp_version": "2",
    # Without a class named, the one the model itself says is not to be split: its decoder layer.
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_reshard_after_forward": "true",
    # Each process writes its part of a checkpoint; a full one would gather the frozen base too.
    "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    # The trainer's gradient_checkpointing decides.
    "fsdp_activation_checkpointing": "false",
    "fsdp_offload_params": "false",
    # Set later, in posttrain.models.sharded, which says why.
    "fsdp_cpu_ram_efficient_loading": "false",
}


def accelerate_config(recipe: Recipe) -> str:
    """The configuration file for `accelerate launch`, as YAML."""
    lines = [
        "compute_environment: LOCAL_MACHINE",
        "distributed_type: FSDP",
        "num_machines: 1",
        f"num_processes: {recipe.launch.num_processes}",
        f"mixed_precision: {mixed_precision(recipe)!r}",
        "fsdp_config:",
        *(f"  {key}: {value}" for key, value in FSDP.items()),
    ]
    return "\n".join(lines) + "\n"


def mixed_precision(recipe: Recipe) -> str:
    """The word accelerate has for model.dtype."""
    return "bf16" if recipe.model.dtype == "bfloat16" else "no"


def fsdp_environment() -> dict[str, str]:
    """What `accelerate launch` would set for the same file."""
    return {"ACCELERATE_USE_FSDP": "true", **{key.upper(): value for key, value in FSDP.items()}}
