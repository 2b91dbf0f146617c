"""Parameters, bytes and operations of a recipe, from configurations alone; no torch."""

from posttrain.memory.advice import suggestions
from posttrain.memory.per_device import GB, VALUE_BYTES, Devices, parse_devices
from posttrain.memory.plan import Phase, fits, plan_memory
from posttrain.memory.shapes import (
    Shapes,
    active_adapter_parameters,
    active_parameters,
    adapter_parameters,
    flops_per_token,
    kv_bytes_per_token,
    parameters_by_kind,
    published_shapes,
    shapes_in,
)

__all__ = [
    "GB",
    "VALUE_BYTES",
    "Devices",
    "Phase",
    "Shapes",
    "active_adapter_parameters",
    "active_parameters",
    "adapter_parameters",
    "fits",
    "flops_per_token",
    "kv_bytes_per_token",
    "parameters_by_kind",
    "parse_devices",
    "plan_memory",
    "published_shapes",
    "shapes_in",
    "suggestions",
]
