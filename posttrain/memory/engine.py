"""What vLLM needs on each device it spans."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.memory.devices import GB, Devices
from posttrain.memory.shapes import Shapes, kv_bytes_per_token
from posttrain.memory.weights import VALUE_BYTES, engine_adapter_bytes, engine_weight_bytes
from posttrain.recipe.models import EngineSpec, Model

WORKING = 3 * GB
"""Allowance for its profiling pass, the sampler and CUDA graphs; not measured."""
ASLEEP = 1 * GB
"""Allowance for what stays on the device in sleep mode; not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineBytes:
    """Bytes on one device."""

    weights: int
    adapter: int
    """Slots for a LoRA policy that is handed over beside the base's weights; on every device."""
    working: int
    kv_cache: int
    """What gpu_memory_utilization leaves for it; negative where it leaves too little."""
    kv_tokens: int
    """That it holds, over all devices of the engine."""
    host: int
    """Weights of the whole engine while it sleeps."""
    assumed: str

    @property
    def total(self) -> int:
        """What gpu_memory_utilization asks for."""
        return self.weights + self.adapter + self.working + self.kv_cache


def engine_bytes(
    shapes: Shapes, spec: EngineSpec, model: Model, devices: Devices | None
) -> EngineBytes:
    """Count an engine; without devices its KV cache holds one sequence of max_model_len tokens."""
    value = VALUE_BYTES[model.dtype]
    spans = spec.tensor_parallel_size
    whole, assumed = engine_weight_bytes(shapes, spec, model.dtype)
    weights = whole // spans
    adapter = 0
    if spec.sync == "adapter" and model.lora is not None:
        adapter = engine_adapter_bytes(shapes, model.lora, value)
    per_token = kv_bytes_per_token(shapes, value) // min(spans, shapes.num_kv_heads)
    if spec.kind == "transformers":
        kv_cache = spec.max_num_seqs * spec.max_model_len * per_token
    elif devices is None:
        kv_cache = spec.max_model_len * per_token
    else:
        share = int(spec.gpu_memory_utilization * devices.capacity)
        kv_cache = share - weights - adapter - WORKING
    return EngineBytes(
        weights=weights,
        adapter=adapter,
        working=WORKING,
        kv_cache=kv_cache,
        kv_tokens=max(0, kv_cache) // per_token,
        host=whole if spec.enable_sleep_mode else 0,
        assumed=assumed,
    )
