"""Check GRPO's batches: whole groups, and checkpoints between generations."""

from __future__ import annotations

import math
from collections.abc import Iterator

from posttrain.recipe.problems import Mistake
from posttrain.recipe.schema import Recipe, Rl


def check_generation_batch(recipe: Recipe) -> Iterator[Mistake]:
    """Check the arithmetic of GRPOConfig.__post_init__ and GRPOTrainer._prepare_inputs."""
    if recipe.rl is None:
        return
    block = recipe.rl.trainer
    if block.generation_batch_size is not None and block.steps_per_generation is not None:
        message = "give it or generation_batch_size, not both"
        yield Mistake(path=_at("steps_per_generation"), message=message)
        return
    group, processes = block.num_generations, recipe.launch.num_processes
    device, accumulation = block.per_device_train_batch_size, block.gradient_accumulation_steps
    if block.generation_batch_size is not None:
        batch = block.generation_batch_size
        place = "generation_batch_size"
        written = f"generation_batch_size {batch}"
        if batch % (device * processes):
            near = nearest_multiples(batch, math.lcm(device * processes, group))
            message = (
                f"{batch} does not divide into steps of {device} x {processes} "
                f"(per_device_train_batch_size x launch.num_processes): {near} would"
            )
            yield Mistake(path=_at(place), message=message)
            return
        per_generation = batch // (device * processes)
    else:
        place = _blamed(recipe.rl)
        key = "gradient_accumulation_steps"
        per_generation = accumulation
        if block.steps_per_generation is not None:
            key, per_generation = "steps_per_generation", block.steps_per_generation
        batch = device * per_generation * processes
        written = (
            f"{device} x {per_generation} x {processes} = {batch} "
            f"(per_device_train_batch_size x {key} x launch.num_processes)"
        )
    if batch % group:
        fits = ", ".join(str(number) for number in _nearest_divisors(batch, group))
        size = nearest_multiples(batch, group)
        advice = (
            f"num_generations {fits} would divide it"
            if fits
            else "more is needed for two answers a prompt"
        )
        message = (
            f"the generation batch {written} is not whole groups of {group}: "
            f"{advice}; or make the batch {size}"
        )
        yield Mistake(path=_at(place), message=message)
        return
    yield from _check_save_steps(recipe.rl, per_generation * block.num_iterations)


def nearest_multiples(number: int, of: int) -> str:
    """Write the multiples of `of` around a number, as `9 or 12`."""
    below, above = number // of * of, -(-number // of) * of
    return " or ".join(str(n) for n in dict.fromkeys((below, above)) if n > 0)


def _at(key: str) -> tuple[str, ...]:
    return ("rl", "trainer", key)


def _blamed(rl: Rl) -> str:
    """Return the key that the recipe sets, of those that decide the batch."""
    keys = ("num_generations", "per_device_train_batch_size", "gradient_accumulation_steps",
            "num_iterations", "steps_per_generation")  # fmt: skip
    return next((key for key in keys if key in rl.trainer.model_fields_set), keys[0])


def _check_save_steps(rl: Rl, micro_steps: int) -> Iterator[Mistake]:
    """Refuse a checkpoint between two generations: it would lose rollouts not yet trained on."""
    accumulation = rl.trainer.gradient_accumulation_steps
    every = micro_steps // math.gcd(micro_steps, accumulation)
    path = _at("save_steps")
    save = rl.trainer.save_steps
    if "save_steps" not in rl.trainer.model_fields_set:
        if every > 1:
            message = (
                "the default, a fifth of the run, may fall between two generations, which begin "
                f"every {every} steps: give a multiple of {every}"
            )
            yield Mistake(path=path, message=message)
    elif save < 1 or save != int(save):
        yield Mistake(path=path, message=f"must be a whole number of steps here, is {save:g}")
    elif int(save) % every:
        near = nearest_multiples(int(save), every)
        message = (
            f"{save:g} falls between two generations, which begin every {every} steps: "
            f"{near} would not"
        )
        yield Mistake(path=path, message=message)


def _nearest_divisors(number: int, near: int) -> list[int]:
    divisors = [d for d in range(2, min(number, 8 * near) + 1) if number % d == 0]
    return sorted(sorted(divisors, key=lambda d: abs(d - near))[:3])
