"""Which engine a training process belongs to: groups of consecutive ranks share one."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.errors import RecipeError


@dataclass(frozen=True, kw_only=True, slots=True)
class EnginePlace:
    """Where a training process stands among the engines.

    >>> engine_place(rank=3, world_size=4, tensor_parallel_size=2)
    EnginePlace(engine=1, num_engines=2, speaks=False)
    """

    engine: int
    """Index of its engine."""
    num_engines: int
    """How many there are."""
    speaks: bool
    """Whether it is the one of its engine's processes whose rollouts count."""


ALONE = EnginePlace(engine=0, num_engines=1, speaks=True)


def engine_place(*, rank: int, world_size: int, tensor_parallel_size: int) -> EnginePlace:
    """Raise RecipeError where the processes do not divide into engines."""
    if world_size % tensor_parallel_size:
        raise RecipeError(
            f"engine.tensor_parallel_size: {world_size} training processes "
            f"(launch.num_processes) do not divide into engines of {tensor_parallel_size}",
            hint="make launch.num_processes a multiple of engine.tensor_parallel_size",
        )
    return EnginePlace(
        engine=rank // tensor_parallel_size,
        num_engines=world_size // tensor_parallel_size,
        speaks=rank % tensor_parallel_size == 0,
    )
