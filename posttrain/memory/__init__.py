"""Parameters, bytes and operations of a recipe, from configurations alone; no torch."""

from posttrain.memory.advice import Suggestion, suggestions
from posttrain.memory.devices import GB, Devices, parse_devices
from posttrain.memory.plan import Phase, fits, plan_memory
from posttrain.memory.published import published_shapes
from posttrain.memory.shapes import (
    Shapes,
    active_adapter_parameters,
    active_parameters,
    adapter_parameters,
    flops_per_token,
    kv_bytes_per_token,
    parameters_by_kind,
    shapes_in,
)
from posttrain.memory.training import pass_of

__all__ = [
    "GB",
    "Devices",
    "Phase",
    "Shapes",
    "Suggestion",
    "active_adapter_parameters",
    "active_parameters",
    "adapter_parameters",
    "fits",
    "flops_per_token",
    "kv_bytes_per_token",
    "parameters_by_kind",
    "parse_devices",
    "pass_of",
    "plan_memory",
    "published_shapes",
    "shapes_in",
    "suggestions",
]
