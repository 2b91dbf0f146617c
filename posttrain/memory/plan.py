"""Memory of every stage of a recipe, on each device and on the host, and whether it fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from posttrain.memory.devices import GB, Devices
from posttrain.memory.engine import ASLEEP, EngineBytes, engine_bytes
from posttrain.memory.shapes import Shapes, matrices
from posttrain.memory.training import TrainingBytes, training_bytes
from posttrain.memory.weights import LINEARS, VALUE_BYTES
from posttrain.recipe.models import EngineSpec
from posttrain.recipe.schema import Recipe, training_stages

CONTEXT = int(1.5 * GB)
"""Allowance for CUDA's context, cuBLAS and NCCL of a process; not measured."""
OUR_ENGINES = ("auto", "vllm", "transformers")


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One stage, or one half of RL's steps, on one device."""

    name: str
    num_devices: int
    lines: Mapping[str, int]
    """What is there -> bytes, in the order of the table."""
    capacity: int | None
    host: int
    """Bytes of host memory, over all processes of the machine."""
    kv_tokens: int | None = None
    problem: str = ""
    """Why it cannot run whatever the total: devices that are not there, no room for a sequence."""
    assumed: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes on one device."""
        return sum(self.lines.values())

    @property
    def margin(self) -> int | None:
        """Bytes that are left; negative where it does not fit."""
        return None if self.capacity is None else self.capacity - self.total

    @property
    def fits(self) -> bool | None:
        """Whether it does; None where there is nothing to hold it against."""
        return None if self.margin is None else self.margin >= 0 and not self.problem


def plan_memory(shapes: Shapes, recipe: Recipe, devices: Devices | None = None) -> list[Phase]:
    """Every stage that needs a device, in order."""
    return list(_phases(shapes, recipe, devices))


def fits(phases: list[Phase]) -> bool:
    """Whether every stage fits."""
    return all(phase.fits is not False for phase in phases)


def _phases(shapes: Shapes, recipe: Recipe, devices: Devices | None) -> Iterator[Phase]:
    if recipe.sft is not None and recipe.sft.judge is not None:
        judge = recipe.sft.judge_engine or recipe.engine
        if judge.kind in OUR_ENGINES:
            yield _engine_phase("judge", shapes, recipe, judge, devices)
    for stage in training_stages():
        if getattr(recipe, stage) is None:
            continue
        if stage == "rl":
            yield from _rl_phases(shapes, recipe, devices)
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


def _rl_phases(shapes: Shapes, recipe: Recipe, devices: Devices | None) -> Iterator[Phase]:
    """RL's two halves: the engine beside what is left of the trainer, and the other way round."""
    assert recipe.rl is not None
    spec, number = recipe.engine, recipe.launch.num_processes
    training = training_bytes(shapes, recipe, "rl")
    engine = engine_bytes(shapes, spec, recipe.model, devices)
    policy = training.weights + training.adapters + training.reference
    is_away = recipe.rl.offload_policy and spec.sync == "adapter"
    host = (policy if recipe.rl.offload_policy else 0) + engine.host * (
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
    """With sync: weights, the largest weight with its adapter folded in, in fp32 and as it is sent.

    Weights go one at a time.
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
    return f"asks for {wanted} devices, and there are {devices.count}"


def _no_room(engine: EngineBytes, spec: EngineSpec) -> str:
    if engine.kv_tokens >= spec.max_model_len:
        return ""
    return (
        f"engine.gpu_memory_utilization {spec.gpu_memory_utilization:g} leaves a KV cache of "
        f"{engine.kv_tokens:,} tokens, and max_model_len is {spec.max_model_len:,}"
    )
