"""Bytes of a model's weights: as training keeps them, and as an engine does."""

from __future__ import annotations

import re
from pathlib import Path

from posttrain.memory.shapes import Shapes, adapter_parameters, matrices, parameters_by_kind
from posttrain.recipe.models import EngineSpec, Frozen, Lora, Model

VALUE_BYTES = {"bfloat16": 2, "float32": 4}
BLOCK = 64
"""Weights of an nf4 block; each has a bfloat16 scale (models/quantized.py)."""
BITS = (
    (r"w4a16|int4|awq|gptq|4bit|nvfp4|mxfp4", 4.25),
    (r"fp8|w8a8|w8a16|int8|8bit", 8.0),
)
"""What a checkpoint's name says of its linear layers, in bits a weight, scales included: four bits
are taken to have a 16-bit scale and a zero point for each 128."""
LINEARS = ("attention", "mlp", "shared_expert", "experts")


def packed_bytes(weight: tuple[int, int, int], kind: str | None, value: int) -> int:
    """Bytes of one weight (experts, in, out), packed as fp8 or nf4, or not."""
    experts, fan_in, fan_out = weight
    count = experts * fan_in * fan_out
    if kind == "fp8":
        return count + value * experts * fan_out
    if kind == "nf4":
        return count // 2 + 2 * count // BLOCK
    return value * count


def layer_weight_bytes(shapes: Shapes, layer: int, frozen: Frozen | None, value: int) -> int:
    """Bytes of a layer's weights as training keeps them; norms are left out."""
    total = 0
    for target, weights in matrices(shapes, layer).items():
        kind = None
        if frozen is not None and target != "router":
            kind = frozen.experts if target == "experts" else frozen.linears
        total += sum(packed_bytes(weight, kind, value) for weight in weights)
    return total


def outer_weight_bytes(shapes: Shapes, value: int) -> int:
    """Bytes of embeddings, head, norms and biases, which are never packed."""
    kinds = parameters_by_kind(shapes)
    return value * sum(kinds.get(k, 0) for k in ("embeddings", "lm_head", "norms", "biases"))


def training_weight_bytes(shapes: Shapes, model: Model) -> int:
    """Bytes of all weights as training keeps them."""
    value = VALUE_BYTES[model.dtype]
    layers = range(shapes.num_layers)
    return outer_weight_bytes(shapes, value) + sum(
        layer_weight_bytes(shapes, layer, model.frozen, value) for layer in layers
    )


def trained_parameters(shapes: Shapes, model: Model) -> int:
    """How many weights take gradients."""
    if model.lora is None:
        return sum(parameters_by_kind(shapes).values())
    return sum(adapter_parameters(shapes, model.lora).values())


def engine_weight_bytes(shapes: Shapes, engine: EngineSpec, dtype: str) -> tuple[int, str]:
    """Bytes of the weights that vLLM holds, over all its devices, and what was assumed."""
    value = VALUE_BYTES[dtype]
    if engine.checkpoint is not None:
        folder = Path(engine.checkpoint).expanduser()
        files = list(folder.glob("*.safetensors")) if folder.is_dir() else []
        if files:
            return sum(file.stat().st_size for file in files), ""
        for pattern, bits in BITS:
            if re.search(pattern, engine.checkpoint.lower()):
                said = f"engine.checkpoint: {bits:g} bits a weight in linear layers, by its name"
                return _with_linears_at(shapes, bits, value), said
        return _with_linears_at(shapes, 8 * value, value), (
            "engine.checkpoint: neither here nor named after a format; counted unquantised"
        )
    bits = 8 if engine.quantization == "fp8" else 8 * value
    return _with_linears_at(shapes, bits, value), ""


def _with_linears_at(shapes: Shapes, bits: float, value: int) -> int:
    kinds = parameters_by_kind(shapes)
    linears = sum(kinds.get(kind, 0) for kind in LINEARS)
    return int(linears * bits / 8) + value * (sum(kinds.values()) - linears)


def engine_adapter_bytes(shapes: Shapes, lora: Lora, value: int) -> int:
    """Bytes of one adapter as vLLM holds it, where gate and up of an expert have an A each."""
    shared_once = adapter_parameters(shapes, lora)
    total = sum(shared_once.values())
    if "experts" in lora.targets:
        total += sum(shapes.is_moe) * shapes.num_experts * lora.rank * shapes.hidden_size
    return value * total
