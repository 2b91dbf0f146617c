"""Suggestions for a recipe that does not fit; each change is planned before it is suggested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.memory.per_device import Devices
from posttrain.memory.plan import Phase, fits, plan_memory
from posttrain.memory.shapes import Shapes
from posttrain.recipe.cross import check_sections
from posttrain.recipe.schema import Dpo, Recipe, Sft, TrainingSection

Change = Mapping[str, Any]
"""Dotted key -> new value; keys that belong combined form one change."""
MAX_CHANGES = 6
"""Changes in a combination."""
MAX_SUGGESTIONS = 4
QUANTISED = {
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": (
        "RedHatAI/Llama-4-Scout-17B-16E-Instruct-quantized.w4a16"
    ),
}
"""Base -> its published quantised checkpoint, which vLLM can load instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggestion:
    """A change of a recipe with its effect on the plan."""

    changes: Change
    saves: int
    """Bytes less in the largest stage."""
    margin: int
    """Bytes left in the tightest stage; negative if it still does not fit."""
    fits: bool


def suggestions(shapes: Shapes, recipe: Recipe, devices: Devices) -> list[Suggestion]:
    """Return single changes that make the recipe fit, the gentlest first; else one combination.

    If nothing fits, return the changes that come closest, or none. A recipe for more devices than
    exist is also changed to the existing ones.
    """
    before = plan_memory(shapes, recipe, devices)
    required = _existing_devices(recipe, devices)
    fitting = [one for one in _planned(shapes, recipe, devices, required, before) if one.fits]
    by_keys: dict[frozenset[str], Suggestion] = {}
    for one in fitting:
        by_keys.setdefault(frozenset(one.changes), one)
    if by_keys:
        return list(by_keys.values())[:MAX_SUGGESTIONS]
    combined = _combined(shapes, recipe, devices, required, before)
    return [] if combined is None else [combined]


def _existing_devices(recipe: Recipe, devices: Devices) -> Change:
    """Return the change that a recipe for more devices than exist needs in any case."""
    asked = max(recipe.launch.num_processes, recipe.engine.tensor_parallel_size)
    if asked <= devices.count:
        return {}
    return {
        "launch.num_processes": devices.count,
        "launch.strategy": "fsdp" if devices.count > 1 else "ddp",
        "engine.tensor_parallel_size": devices.count,
    }


def changed(recipe: Recipe, change: Change) -> Recipe | None:
    """Return the recipe with some keys changed; None if the result is not valid."""
    data = recipe.model_dump(by_alias=True, exclude_unset=True)
    for key, value in change.items():
        *parents, leaf = key.split(".")
        node = data
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    found = Recipe.model_validate(data)
    return None if check_sections(found, frozenset()) else found


def _combined(
    shapes: Shapes, recipe: Recipe, devices: Devices, required: Change, before: list[Phase]
) -> Suggestion | None:
    """Combine changes greedily: the best one, then the best in addition, until the recipe fits."""
    best: Suggestion | None = None
    start = changed(recipe, required)
    distance = _distance(plan_memory(shapes, start, devices) if start else before)
    for _ in range(MAX_CHANGES):
        taken = best.changes if best else required
        found: list[tuple[int, Suggestion]] = []
        for one in _planned(shapes, recipe, devices, taken, before):
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
    """Count the bytes missing over all stages; a stage that cannot run misses a whole device."""
    return sum(
        max(0, -(phase.margin or 0)) + bool(phase.problem) * (phase.capacity or 0)
        for phase in phases
    )


def _planned(
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
    """Yield changes that may help, the gentlest first."""
    for stage, section in recipe.training.items():
        yield from _trainer_changes(stage, section)
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


def _trainer_changes(stage: str, section: TrainingSection) -> Iterator[Change]:
    block = section.trainer
    size = block.per_device_train_batch_size
    if size > 1:
        yield {
            f"{stage}.trainer.per_device_train_batch_size": 1,
            f"{stage}.trainer.gradient_accumulation_steps": block.gradient_accumulation_steps
            * size,
        }
    if not block.gradient_checkpointing:
        yield {f"{stage}.trainer.gradient_checkpointing": True}
    length = section.trainer.max_length if isinstance(section, Sft | Dpo) else None
    if length and length > 1024:
        yield {f"{stage}.trainer.max_length": length // 2}
