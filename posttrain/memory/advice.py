"""What to change in a recipe that does not fit: each change re-planned before it is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.memory.devices import Devices
from posttrain.memory.plan import Phase, fits, plan_memory
from posttrain.memory.shapes import Shapes
from posttrain.memory.training import setting
from posttrain.recipe.cross import cross_faults
from posttrain.recipe.schema import Recipe, training_stages

Change = Mapping[str, Any]
"""Dotted key -> new value; keys that only make sense together are one change."""
MAX_CHANGES = 6
QUANTISED = {
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": (
        "RedHatAI/Llama-4-Scout-17B-16E-Instruct-quantized.w4a16"
    ),
}
"""Published checkpoints that vLLM can load instead of a base."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggestion:
    """Changes that were planned again."""

    changes: Change
    saves: int
    """Bytes off the stage that is furthest from fitting."""
    margin: int
    """What is left then in the tightest stage; negative where it still does not fit."""
    fits: bool


def suggestions(
    shapes: Shapes, recipe: Recipe, devices: Devices, *, at_most: int = 4
) -> list[Suggestion]:
    """Single changes that make the recipe fit, the gentlest first; else those that together do.

    Where nothing does: the changes that come closest, or none. A recipe for more devices than there
    are is changed to those that are there besides.
    """
    before = plan_memory(shapes, recipe, devices)
    must = _devices_that_are_there(recipe, devices)
    tried = [one for one in _tried(shapes, recipe, devices, must, before) if one.fits]
    by_keys: dict[frozenset[str], Suggestion] = {}
    for one in tried:
        by_keys.setdefault(frozenset(one.changes), one)
    if by_keys:
        return list(by_keys.values())[:at_most]
    together = _together(shapes, recipe, devices, must, before)
    return [] if together is None else [together]


def _devices_that_are_there(recipe: Recipe, devices: Devices) -> Change:
    """What a recipe for more devices must change in any case."""
    asked = max(recipe.launch.num_processes, recipe.engine.tensor_parallel_size)
    if asked <= devices.count:
        return {}
    return {
        "launch.num_processes": devices.count,
        "launch.strategy": "fsdp" if devices.count > 1 else "ddp",
        "engine.tensor_parallel_size": devices.count,
    }


def changed(recipe: Recipe, change: Change) -> Recipe | None:
    """The recipe with some keys changed; None where it would not be sound."""
    data = recipe.model_dump(by_alias=True, exclude_unset=True)
    for key, value in change.items():
        *parents, leaf = key.split(".")
        node = data
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    found = Recipe.model_validate(data)
    return None if cross_faults(found, frozenset()) else found


def _together(
    shapes: Shapes, recipe: Recipe, devices: Devices, must: Change, before: list[Phase]
) -> Suggestion | None:
    """The best change, then the best beside it, until it fits or nothing helps."""
    best: Suggestion | None = None
    start = changed(recipe, must)
    distance = _distance(plan_memory(shapes, start, devices) if start else before)
    for _ in range(MAX_CHANGES):
        taken = best.changes if best else must
        found: list[tuple[int, Suggestion]] = []
        for one in _tried(shapes, recipe, devices, taken, before):
            after = changed(recipe, one.changes)
            assert after is not None
            found.append((_distance(plan_memory(shapes, after, devices)), one))
        nearer = min(found, key=lambda pair: pair[0], default=None)
        if nearer is None or nearer[0] >= distance:
            break
        distance, best = nearer
        if best.fits:
            break
    return best


def _distance(phases: list[Phase]) -> int:
    """Bytes that are missing over all stages; a stage that cannot run lacks a whole device."""
    return sum(
        max(0, -(phase.margin or 0)) + bool(phase.problem) * (phase.capacity or 0)
        for phase in phases
    )


def _tried(
    shapes: Shapes, recipe: Recipe, devices: Devices, taken: Change, before: list[Phase]
) -> Iterator[Suggestion]:
    for change in _changes(shapes, recipe, devices):
        if all(taken.get(key) == value for key, value in change.items()):
            continue
        after = changed(recipe, {**taken, **change})
        if after is None:
            continue
        phases = plan_memory(shapes, after, devices)
        yield Suggestion(
            changes={**taken, **change},
            saves=max(p.total for p in before) - max(p.total for p in phases),
            margin=min(p.margin or 0 for p in phases),
            fits=fits(phases),
        )


def _changes(shapes: Shapes, recipe: Recipe, devices: Devices) -> Iterator[Change]:
    """What might help, the gentlest first."""
    for stage in training_stages():
        section = getattr(recipe, stage)
        if section is not None:
            yield from _trainer_changes(stage, section.trainer)
    if recipe.model.lora is not None:
        packings = ("fp8", "nf4") if any(shapes.is_moe) else ()
        for packing in packings:
            yield {"model.frozen": {"experts": packing, "linears": None}}
            yield {"model.frozen": {"experts": packing, "linears": packing}}
        if recipe.model.lora.rank > 8:
            yield {"model.lora.rank": 8}
    count = devices.count
    if count > 1:
        yield {"launch.strategy": "fsdp", "launch.num_processes": count}
        yield {"engine.tensor_parallel_size": count, "launch.num_processes": count}
    for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        yield {"engine.gpu_memory_utilization": share}
        yield {"engine.gpu_memory_utilization": share, "engine.enable_sleep_mode": True}
    yield {"engine.enable_sleep_mode": True}
    if recipe.model.lora is not None:
        yield {"engine.sync": "adapter"}
        yield {"engine.quantization": "fp8", "engine.sync": "adapter"}
        other = QUANTISED.get(str(recipe.model.base))
        if other is not None:
            yield {
                "engine.checkpoint": other,
                "engine.quantization": None,
                "engine.sync": "adapter",
            }
        if recipe.rl is not None:
            turns = {"engine.enable_sleep_mode": True, "rl.offload_policy": True}
            yield {**turns, "engine.sync": "adapter", "engine.gpu_memory_utilization": 0.9}


def _trainer_changes(stage: str, block: Mapping[str, Any]) -> Iterator[Change]:
    size: int = setting(stage, block, "per_device_train_batch_size")
    if size > 1:
        steps: int = setting(stage, block, "gradient_accumulation_steps")
        yield {
            f"{stage}.trainer.per_device_train_batch_size": 1,
            f"{stage}.trainer.gradient_accumulation_steps": steps * size,
        }
    if not setting(stage, block, "gradient_checkpointing"):
        yield {f"{stage}.trainer.gradient_checkpointing": True}
    if stage != "rl" and (length := setting(stage, block, "max_length")) and length > 1024:
        yield {f"{stage}.trainer.max_length": length // 2}
