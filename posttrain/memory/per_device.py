"""Bytes on one device: of a training stage, and of an engine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from posttrain.errors import RecipeError
from posttrain.memory.activations import FP32, Pass, PassBytes, pass_bytes
from posttrain.memory.shapes import (
    Shapes,
    adapter_parameters,
    kv_bytes_per_token,
    matrices,
    parameters_by_kind,
)
from posttrain.recipe.models import EngineSpec, Frozen, Lora, Model
from posttrain.recipe.schema import Dpo, Recipe, Rl, Sft

GB = 10**9
UNITS = {"gb": GB, "gib": 2**30}
VALUE_BYTES = {"bfloat16": 2, "float32": 4}
BLOCK = 64
"""Weights of an nf4 block, which has one bfloat16 scale (models/quantized.py)."""
BITS = (
    (r"w4a16|int4|awq|gptq|4bit|nvfp4|mxfp4", 4.25),
    (r"fp8|w8a8|w8a16|int8|8bit", 8.0),
)
"""Bits per weight of linear layers, scales included, by a pattern in the checkpoint's name. Four
bits are assumed to have a 16-bit scale and a zero point per 128 weights."""
LINEARS = ("attention", "mlp", "shared_expert", "experts")
STATES: dict[str, float] = {"sgd": 0, "adafactor": 0, "lion_32bit": 1}
"""Copies of the trained weights in an optimizer's state. All others are counted as Adam's two
moments, those with 8bit in their name as a quarter of that. Adafactor's factors are negligible."""
GATHERED_LAYERS = 2
"""Layers that FSDP gathers at a time: the one at work and the next."""
WORKING = 3 * GB
"""Allowance for vLLM's profiling pass, sampler and CUDA graphs; not measured."""
ASLEEP = 1 * GB
"""Allowance for what vLLM leaves on the device in sleep mode; not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """Equal devices of one machine."""

    count: int
    capacity: int
    """Bytes of memory of one device."""

    def __str__(self) -> str:
        return f"{self.count} x {self.capacity / GB:g} GB"


def parse_devices(text: str) -> Devices:
    """Parse `8x80gb` or `1x79.6gib`; raise RecipeError for anything else.

    GB are decimal, as a device is sold. A driver reports a few per cent more (80 GB: about 85e9
    bytes), which the plan leaves to fragmentation.
    """
    match = re.fullmatch(r"(\d+)x(\d+(?:\.\d+)?)(gb|gib)", text.strip().lower())
    if match is None or int(match[1]) < 1 or float(match[2]) <= 0:
        raise RecipeError(
            f"--devices {text} is not of the form NxMgb",
            hint="for example --devices 8x80gb, or 1x79.6gib",
        )
    return Devices(count=int(match[1]), capacity=int(float(match[2]) * UNITS[match[3]]))


def weight_bytes(weight: tuple[int, int, int], kind: str | None, value: int) -> int:
    """Return the bytes of one weight (experts, in, out), in fp8, nf4 or not quantised."""
    experts, fan_in, fan_out = weight
    count = experts * fan_in * fan_out
    if kind == "fp8":
        return count + value * experts * fan_out
    if kind == "nf4":
        return count // 2 + 2 * count // BLOCK
    return value * count


def layer_weight_bytes(shapes: Shapes, layer: int, frozen: Frozen | None, value: int) -> int:
    """Return the bytes of a layer's weights in training, without norms."""
    total = 0
    for target, weights in matrices(shapes, layer).items():
        kind = None
        if frozen is not None and target != "router":
            kind = frozen.experts if target == "experts" else frozen.linears
        total += sum(weight_bytes(weight, kind, value) for weight in weights)
    return total


def outer_weight_bytes(shapes: Shapes, value: int) -> int:
    """Return the bytes of embeddings, head, norms and biases, which are never quantised."""
    kinds = parameters_by_kind(shapes)
    return value * sum(kinds.get(k, 0) for k in ("embeddings", "lm_head", "norms", "biases"))


def training_weight_bytes(shapes: Shapes, model: Model) -> int:
    """Return the bytes of all weights in training."""
    value = VALUE_BYTES[model.dtype]
    layers = range(shapes.num_layers)
    return outer_weight_bytes(shapes, value) + sum(
        layer_weight_bytes(shapes, layer, model.frozen, value) for layer in layers
    )


def trained_parameters(shapes: Shapes, model: Model) -> int:
    """Count the weights that are trained."""
    if model.lora is None:
        return sum(parameters_by_kind(shapes).values())
    return sum(adapter_parameters(shapes, model.lora).values())


def engine_weight_bytes(shapes: Shapes, engine: EngineSpec, dtype: str) -> tuple[int, str]:
    """Return the bytes of vLLM's weights over all its devices, and what was assumed about them."""
    value = VALUE_BYTES[dtype]
    if engine.checkpoint is not None:
        folder = Path(engine.checkpoint).expanduser()
        files = list(folder.glob("*.safetensors")) if folder.is_dir() else []
        if files:
            return sum(file.stat().st_size for file in files), ""
        for pattern, bits in BITS:
            if re.search(pattern, engine.checkpoint.lower()):
                said = f"engine.checkpoint: {bits:g} bits per weight in linear layers, by its name"
                return _with_linears_at(shapes, bits, value), said
        return _with_linears_at(shapes, 8 * value, value), (
            "engine.checkpoint: not on this machine and no format in its name; counted unquantised"
        )
    bits = 8 if engine.quantization == "fp8" else 8 * value
    return _with_linears_at(shapes, bits, value), ""


def _with_linears_at(shapes: Shapes, bits: float, value: int) -> int:
    kinds = parameters_by_kind(shapes)
    linears = sum(kinds.get(kind, 0) for kind in LINEARS)
    return int(linears * bits / 8) + value * (sum(kinds.values()) - linears)


def engine_adapter_bytes(shapes: Shapes, lora: Lora, value: int) -> int:
    """Return the bytes of one adapter in vLLM, where an expert's gate and up have an A each."""
    shared_once = adapter_parameters(shapes, lora)
    total = sum(shared_once.values())
    if "experts" in lora.targets:
        total += sum(shapes.is_moe) * shapes.num_experts * lora.rank * shapes.hidden_size
    return value * total


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingBytes:
    """Bytes of a training stage on one device."""

    weights: int
    """Frozen and trained base weights, with FSDP this device's shard of them."""
    gathered: int
    """Layers that FSDP gathers from the other devices."""
    adapters: int
    """Adapters in fp32, with the reference policy's copy if there is one."""
    reference: int
    """Reference model of full training."""
    gradients: int
    """Gradients, and with DDP its buckets, which hold them once more."""
    optimizer: int
    work: PassBytes

    @property
    def resident(self) -> int:
        """Return the bytes between two steps."""
        return self.weights + self.adapters + self.reference + self.optimizer

    @property
    def peak(self) -> int:
        """Return the peak of a step."""
        return self.resident + self.gathered + self.gradients + self.work.peak


def pass_of(recipe: Recipe, stage: str) -> Pass:
    """Return a stage's largest pass: a full batch of sequences of the greatest length.

    DPO puts chosen and rejected answers into one pass. RL's sequences are assumed to fill
    engine.max_model_len. A mask is needed if sequences are packed or may be padded: not for a
    single one, except in RL, which pads to the longest of a whole generation batch.
    """
    section = recipe.training[stage]
    sequences = section.trainer.per_device_train_batch_size
    length, is_masked = recipe.engine.max_model_len, True
    if isinstance(section, Sft | Dpo):
        length = section.trainer.max_length or length
        sequences *= 2 if isinstance(section, Dpo) else 1
        is_packed = isinstance(section, Sft) and section.trainer.packing
        is_masked = sequences > 1 or is_packed
    lora = recipe.model.lora
    return Pass(
        sequences=sequences,
        length=length,
        value=VALUE_BYTES[recipe.model.dtype],
        is_masked=is_masked,
        rank=lora.rank if lora else 0,
        targets=lora.targets if lora else (),
        is_full=lora is None,
        frozen=recipe.model.frozen,
    )


def training_bytes(shapes: Shapes, recipe: Recipe, stage: str) -> TrainingBytes:
    """Count the bytes of a training stage on one device."""
    model, launch = recipe.model, recipe.launch
    section = recipe.training[stage]
    shards = launch.num_processes if launch.strategy == "fsdp" else 1
    trained = trained_parameters(shapes, model)
    value = FP32 if model.lora is not None else VALUE_BYTES[model.dtype]
    has_reference = isinstance(section, Dpo) or (
        isinstance(section, Rl) and section.trainer.beta > 0
    )
    copies = 2 if launch.num_processes > 1 and shards == 1 else 1
    weights = training_weight_bytes(shapes, model)
    optim = section.trainer.optim
    states = STATES.get(optim, 0.5 if "8bit" in optim else 2) * value * trained
    is_checkpointed = section.trainer.gradient_checkpointing
    return TrainingBytes(
        weights=weights // shards,
        gathered=_gathered(shapes, model) if shards > 1 else 0,
        adapters=(1 + has_reference) * FP32 * trained // shards if model.lora else 0,
        reference=weights // shards if has_reference and model.lora is None else 0,
        gradients=copies * value * trained // shards,
        optimizer=int(states / shards),
        work=pass_bytes(shapes, pass_of(recipe, stage), is_checkpointed=is_checkpointed),
    )


def _gathered(shapes: Shapes, model: Model) -> int:
    """Count two neighbouring layers and the weights outside layers, which stay gathered."""
    value = VALUE_BYTES[model.dtype]
    each = [
        layer_weight_bytes(shapes, layer, model.frozen, value) for layer in range(shapes.num_layers)
    ]
    neighbours = [sum(each[at : at + GATHERED_LAYERS]) for at in range(len(each))]
    return max(neighbours) + outer_weight_bytes(shapes, value)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineBytes:
    """Bytes of an engine on one device."""

    weights: int
    adapter: int
    """Slot for a LoRA adapter (engine.sync: adapter), in full on every device."""
    working: int
    kv_cache: int
    """Rest of gpu_memory_utilization; negative if it is too small."""
    kv_tokens: int
    """Tokens that the KV cache holds over all devices of the engine."""
    host: int
    """Host memory for the weights of the whole engine while it sleeps."""
    assumed: str
    """Assumption about the weights, for the reader of a plan; empty without one."""

    @property
    def total(self) -> int:
        """Return what gpu_memory_utilization claims."""
        return self.weights + self.adapter + self.working + self.kv_cache


def engine_bytes(
    shapes: Shapes, spec: EngineSpec, model: Model, devices: Devices | None
) -> EngineBytes:
    """Count the bytes of an engine on one device.

    Without devices, its KV cache holds one sequence of max_model_len tokens.
    """
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
