"""Check whether a recipe fits the devices: parameters, bytes and FLOPs as JSON values."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrain.errors import SetupError
from posttrain.memory import (
    GB,
    VALUE_BYTES,
    Devices,
    Phase,
    Shapes,
    active_adapter_parameters,
    active_parameters,
    adapter_parameters,
    fits,
    flops_per_token,
    kv_bytes_per_token,
    parameters_by_kind,
    plan_memory,
    published_shapes,
    shapes_in,
    suggestions,
)
from posttrain.pipeline.environment import cuda_memory
from posttrain.recipe.schema import Recipe

LENGTHS = (2048, 4096, 8192)
"""Sequence lengths in tokens at which FLOPs are reported."""


def devices_here() -> Devices | None:
    """Return the CUDA devices of this machine, each counted as the smallest; None without any."""
    found = cuda_memory()
    return Devices(count=len(found), capacity=min(found)) if found else None


def shapes_of(recipe: Recipe, base: Path | None) -> Shapes | None:
    """Return the base model's shapes from its folder, else as published; None if unknown."""
    if base is not None and (base / "config.json").is_file():
        return shapes_in(base)
    return published_shapes(recipe.model.base) if isinstance(recipe.model.base, str) else None


def memory_values(recipe: Recipe, base: Path | None, devices: Devices | None) -> dict[str, Any]:
    """Return parameters, bytes and FLOPs by stage; empty if the shapes are not known yet."""
    shapes = shapes_of(recipe, base)
    if shapes is None:
        return {}
    lora = recipe.model.lora
    kinds = parameters_by_kind(shapes)
    adapters = adapter_parameters(shapes, lora) if lora else {}
    phases = plan_memory(shapes, recipe, devices)
    does_fit = fits(phases)
    found = [] if devices is None or does_fit else suggestions(shapes, recipe, devices)
    return {
        "parameters": kinds,
        "num_parameters": sum(kinds.values()),
        "active_parameters": active_parameters(shapes),
        "adapters": adapters,
        "trained_parameters": sum(adapters.values()) if lora else sum(kinds.values()),
        "kv_bytes_per_token": kv_bytes_per_token(shapes, VALUE_BYTES[recipe.model.dtype]),
        "flops_per_token": {str(length): _flops(shapes, recipe, length) for length in LENGTHS},
        "devices": None if devices is None else {"count": devices.count, "bytes": devices.capacity},
        "stages": [_phase(phase) for phase in phases],
        "fits": None if devices is None else does_fit,
        "suggestions": [
            {"changes": dict(s.changes), "saves": s.saves, "margin": s.margin, "fits": s.fits}
            for s in found
        ],
    }


def _flops(shapes: Shapes, recipe: Recipe, length: int) -> dict[str, float]:
    lora = recipe.model.lora
    weights = active_adapter_parameters(shapes, lora) if lora else 0
    return asdict(flops_per_token(shapes, sequence_length=length, adapter_weights=weights))


def _phase(phase: Phase) -> dict[str, Any]:
    return {
        "stage": phase.name,
        "num_devices": phase.num_devices,
        "bytes": dict(phase.lines),
        "total": phase.total,
        "capacity": phase.capacity,
        "margin": phase.margin,
        "fits": phase.fits,
        "problem": phase.problem,
        "kv_tokens": phase.kv_tokens,
        "host_bytes": phase.host,
        "assumed": list(phase.assumed),
    }


def check_fit(memory: Mapping[str, Any], command: str) -> None:
    """Raise SetupError, with the figures, if a stage of a plan does not fit."""
    failing = [stage for stage in memory.get("stages", ()) if stage["fits"] is False]
    if not failing:
        return
    worst = min(failing, key=lambda stage: stage["margin"])
    names = ", ".join(stage["stage"] for stage in failing)
    why = worst["problem"] or (
        f"needs {worst['total'] / GB:.1f} GB on each device, and one has "
        f"{worst['capacity'] / GB:.1f} GB"
    )
    enough = [one for one in memory["suggestions"] if one["fits"]]
    changes = enough[0]["changes"] if enough else {}
    sets = [f"--set {shlex.quote(f'{key}={_value(value)}')}" for key, value in changes.items()]
    raise SetupError(
        f"too little memory for {names}; {worst['stage']} {why}",
        hint=" ".join([command, *sets]) + "; or with --force, to go on all the same"
        if sets
        else f"{command} --force, to go on all the same",
    )


def in_words(suggestion: Mapping[str, Any]) -> str:
    """Return a suggestion as recipe keys, and the memory that it saves."""
    changes = ", ".join(f"{key}: {_value(v)}" for key, v in suggestion["changes"].items())
    margin, saves = suggestion["margin"] / GB, suggestion["saves"] / GB
    saved = f" saves {saves:.1f} GB" if saves > 0 else ""
    if suggestion["fits"]:
        return f"{changes}{saved}: fits with {margin:.1f} GB left"
    return f"{changes}{saved}: comes closest, and still lacks {-margin:.1f} GB"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(v)}" for key, v in value.items()) + "}"
    return value if isinstance(value, str) else json.dumps(value)
