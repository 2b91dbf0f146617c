"""Memory plan of a recipe: bytes of every stage on each device and on the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from posttrain.memory.per_device import (
    ASLEEP,
    GB,
    LINEARS,
    VALUE_BYTES,
    Devices,
    EngineBytes,
    TrainingBytes,
    engine_bytes,
    training_bytes,
)
from posttrain.memory.shapes import Shapes, matrices
from posttrain.recipe.models import EngineSpec
from posttrain.recipe.schema import Recipe, Rl

CONTEXT = int(1.5 * GB)
"""Allowance for CUDA's context, cuBLAS and NCCL of a process; not measured."""
OUR_ENGINES = ("auto", "vllm", "transformers")


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """Memory of one stage on one device; RL has two phases, rollouts and update."""

    name: str
    num_devices: int
    lines: Mapping[str, int]
    """Use of memory -> bytes, in the order of the table."""
    capacity: int | None
    host: int
    """Bytes of host memory for all processes of the machine."""
    kv_tokens: int | None = None
    problem: str = ""
    """Reason why it cannot run at all: missing devices, or a KV cache too small for a sequence."""
    assumed: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Return the bytes on one device."""
        return sum(self.lines.values())

    @property
    def margin(self) -> int | None:
        """Return the bytes left, negative if it does not fit; None if the capacity is unknown."""
        return None if self.capacity is None else self.capacity - self.total

    @property
    def fits(self) -> bool | None:
        """Return True if it fits, None if the capacity is unknown."""
        return None if self.margin is None else self.margin >= 0 and not self.problem


def plan_memory(shapes: Shapes, recipe: Recipe, devices: Devices | None = None) -> list[Phase]:
    """Return the phases of every stage that needs a device, in order."""
    return list(_phases(shapes, recipe, devices))


def fits(phases: list[Phase]) -> bool:
    """Return True unless some stage is known not to fit."""
    return all(phase.fits is not False for phase in phases)


def _phases(shapes: Shapes, recipe: Recipe, devices: Devices | None) -> Iterator[Phase]:
    if recipe.sft is not None and recipe.sft.judge is not None:
        judge = recipe.sft.judge_engine or recipe.engine
        if judge.kind in OUR_ENGINES:
            yield _engine_phase("judge", shapes, recipe, judge, devices)
    for stage, section in recipe.training.items():
        if isinstance(section, Rl):
            yield from _rl_phases(shapes, recipe, section, devices)
        else:
            yield _training_phase(stage, shapes, recipe, devices)
    if recipe.eval.suites:
        yield _engine_phase("eval", shapes, recipe, recipe.engine, devices)


def _engine_phase(
    name: str, shapes: Shapes, recipe: Recipe, spec: EngineSpec, devices: Devices | None
) -> Phase:
    engine = engine_bytes(shapes, spec, recipe.model, devices)
    return Phase(
        name=name,
        num_devices=spec.tensor_parallel_size,
        lines={**_engine_lines(engine), "context": CONTEXT},
        capacity=devices.capacity if devices else None,
        host=0,
        kv_tokens=engine.kv_tokens,
        problem=_too_few(spec.tensor_parallel_size, devices) or _no_room(engine, spec),
        assumed=(engine.assumed,) if engine.assumed else (),
    )


def _training_phase(name: str, shapes: Shapes, recipe: Recipe, devices: Devices | None) -> Phase:
    number = recipe.launch.num_processes
    return Phase(
        name=name,
        num_devices=number,
        lines={**_step_lines(training_bytes(shapes, recipe, name)), "context": CONTEXT},
        capacity=devices.capacity if devices else None,
        host=0,
        problem=_too_few(number, devices),
    )


def _rl_phases(
    shapes: Shapes, recipe: Recipe, section: Rl, devices: Devices | None
) -> Iterator[Phase]:
    """Yield RL's phases: the engine beside the idle trainer, and the trainer beside the engine."""
    spec, number = recipe.engine, recipe.launch.num_processes
    training = training_bytes(shapes, recipe, "rl")
    engine = engine_bytes(shapes, spec, recipe.model, devices)
    policy = training.weights + training.adapters + training.reference
    is_away = section.offload_policy and spec.sync == "adapter"
    host = (policy if section.offload_policy else 0) + engine.host * (
        number // spec.tensor_parallel_size
    )
    resident: dict[str, int] = {"optimizer": training.optimizer}
    if not is_away:
        resident = {
            "weights": training.weights,
            "adapters": training.adapters + training.reference,
            **resident,
        }
    capacity = devices.capacity if devices else None
    problem = _too_few(number, devices)
    yield Phase(
        name="rl: rollouts",
        num_devices=number,
        lines={
            **resident,
            **_engine_lines(engine),
            **_handed_over(shapes, recipe),
            "context": CONTEXT,
        },
        capacity=capacity,
        host=host,
        kv_tokens=engine.kv_tokens,
        problem=problem or _no_room(engine, spec),
        assumed=(engine.assumed,) if engine.assumed else (),
    )
    beside = ASLEEP if spec.enable_sleep_mode else engine.total
    yield Phase(
        name="rl: update",
        num_devices=number,
        lines={**_step_lines(training), "engine": beside, "context": CONTEXT},
        capacity=capacity,
        host=host,
        problem=problem,
    )


def _handed_over(shapes: Shapes, recipe: Recipe) -> dict[str, int]:
    """Count the weight on its way to the engine (engine.sync: weights): merged in fp32, then cast.

    Weights are sent one at a time, so the largest counts.
    """
    lora = recipe.model.lora
    if recipe.engine.sync != "weights" or lora is None:
        return {}
    folded = [
        e * i * o
        for layer in range(shapes.num_layers)
        for target, weights in matrices(shapes, layer).items()
        for e, i, o in weights
        if target in lora.targets and target in LINEARS
    ]
    return {"handed over": (4 + 4 + VALUE_BYTES[recipe.model.dtype]) * max(folded, default=0)}


def _step_lines(training: TrainingBytes) -> dict[str, int]:
    work = training.work
    loss = work.logits > work.live_layer + work.unpacking
    lines = {
        "weights": training.weights,
        "gathered": training.gathered,
        "adapters": training.adapters + training.reference,
        "gradients": training.gradients,
        "optimizer": training.optimizer,
        "activations": work.activations,
        "live layer": 0 if loss else work.live_layer,
        "unpacking": 0 if loss else work.unpacking,
        "logits": work.logits if loss else 0,
    }
    return {name: size for name, size in lines.items() if size}


def _engine_lines(engine: EngineBytes) -> dict[str, int]:
    lines = {
        "engine weights": engine.weights,
        "engine adapter": engine.adapter,
        "engine working": engine.working,
        "KV cache": max(0, engine.kv_cache),
    }
    return {name: size for name, size in lines.items() if size}


def _too_few(wanted: int, devices: Devices | None) -> str:
    if devices is None or devices.count >= wanted:
        return ""
    return f"asks for {wanted} devices, but there are {devices.count}"


def _no_room(engine: EngineBytes, spec: EngineSpec) -> str:
    if engine.kv_tokens >= spec.max_model_len:
        return ""
    return (
        f"engine.gpu_memory_utilization {spec.gpu_memory_utilization:g} leaves a KV cache of "
        f"{engine.kv_tokens:,} tokens, but max_model_len is {spec.max_model_len:,}"
    )
