"""What no single section can know: how the sections of a recipe fit together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from posttrain.curriculum import CurriculumSpec
from posttrain.recipe.problems import Fault, nearest
from posttrain.recipe.rows import DataSource
from posttrain.recipe.schema import Recipe
from posttrain.recipe.sources import needs, verifiers_of
from posttrain.recipe.trainer import trainer_fields

VLLM_ONLY = ("tensor_parallel_size", "quantization", "checkpoint", "sync", "enable_sleep_mode")
"""Keys of the engine section that other engines pass by."""


def cross_faults(recipe: Recipe, unsound: frozenset[str]) -> list[Fault]:
    """Every clash between sections; a rule that needs an `unsound` section is left out."""
    rules: list[tuple[set[str], Callable[[Recipe], Iterator[Fault]]]] = [
        ({"model"}, _model),
        ({"engine"}, _engine),
        ({"engine", "model"}, _adapter_sync),
        ({"engine", "launch", "rl"}, _placement),
        ({"model", "sft", "rl", "dpo"}, _balancing),
        ({"sft", "rl", "dpo"}, _stages),
        ({"sft", "rl", "eval", "answer_judge"}, _answer_judge),
        ({"sft", "rl", "dpo", "eval"}, _eval),
        ({"engine", "eval", "sft", "rl"}, _lengths),
        ({"rl", "launch"}, _generation_batch),
        ({"sft", "eval"}, _levels),
        ({"rl"}, _rl_verifiers),
        ({"eval"}, _suite_verifiers),
    ]
    return [fault for needs, rule in rules if not needs & unsound for fault in rule(recipe)]


def quota_faults(recipe: Recipe, curriculum: CurriculumSpec) -> Iterator[Fault]:
    """Quotas for capabilities that rl.data does not have; paths are within the curriculum file."""
    if not curriculum.quotas or recipe.rl is None:
        return
    known = {name for source in recipe.rl.data for name in capabilities(source)}
    for name in curriculum.quotas:
        if name not in known:
            message = f"rl.data has no such capability, only {', '.join(sorted(known))}"
            yield Fault(path=("quotas", name), message=message,
                        suggestion=nearest(name, known))  # fmt: skip
    if not any(curriculum.quotas.values()):
        yield Fault(
            path=("quotas",), message="every share is 0: give at least one capability a share"
        )


def baseline_faults(recipe: Recipe, curriculum: CurriculumSpec) -> Iterator[Fault]:
    """Shaping beside advantages that take no rewards."""
    baseline = getattr(curriculum, "baseline", "group")
    if recipe.rl is not None and recipe.rl.shaping is not None and baseline != "group":
        message = (
            f"has no effect with the curriculum's baseline {baseline}, which takes no rewards: "
            "leave one of the two out"
        )
        yield Fault(path=("rl", "shaping"), message=message)


def capabilities(source: DataSource) -> list[str]:
    """The tags that a source's rows will carry."""
    if source.capability is not None:
        return [source.capability]
    if source.generated is not None:
        return list(source.generated.named)
    return list(source.reasoning_gym or ())


def _levels(recipe: Recipe) -> Iterator[Fault]:
    """Levels follow the policy in RL; nowhere else is there one that could raise them."""
    places: list[tuple[tuple[str | int, ...], list[DataSource]]] = []
    if recipe.sft is not None:
        places.append((("sft", "data"), recipe.sft.data))
    for i, suite in enumerate(recipe.eval.suites):
        if not isinstance(suite, str):
            places.append((("eval", "suites", i, "data"), suite.data))
    for path, sources in places:
        for i, source in enumerate(sources):
            if source.levels is not None:
                yield Fault(
                    path=(*path, i, "levels"),
                    message="levels move in rl.data only: give the family's own keys here",
                )


def notes(recipe: Recipe) -> Iterator[Fault]:
    """What is set and has no effect in this recipe, or needs what is not installed here."""
    if recipe.answer_judge is not None and not needs(recipe, "judge"):
        message = "has no effect: no data has verifier: judge"
        yield Fault(path=("answer_judge",), message=message)
    for section, data in (("sft", recipe.sft), ("rl", recipe.rl)):
        for index, source in enumerate(data.data if data else ()):
            if "instructions" in verifiers_of(source) and find_spec("lm_eval") is None:
                message = 'needs lm-eval, which is not here: pip install "posttrain[instructions]"'
                yield Fault(path=(section, "data", index), message=message)
    sft = recipe.sft
    if sft is not None and sft.judge is None:
        for key in ("prune", "pilot", "judge_engine"):
            if key in sft.model_fields_set and getattr(sft, key) is not None:
                yield Fault(path=("sft", key), message="has no effect without sft.judge")
    if (
        sft is not None
        and sft.judge_engine is None
        and sft.judge is not None
        and sft.pilot.num_samples == 0
    ):
        yield Fault(
            path=("sft", "pilot", "num_samples"),
            message="0: nothing will say whether the judge is any good",
        )
    if recipe.launch.strategy == "fsdp" and recipe.launch.num_processes == 1:
        yield Fault(
            path=("launch", "strategy"), message="fsdp has nothing to shard over with one process"
        )
    if recipe.engine.kind == "transformers":
        for key in VLLM_ONLY:
            if key in recipe.engine.model_fields_set:
                yield Fault(path=("engine", key), message="has no effect without vLLM")


def _model(recipe: Recipe) -> Iterator[Fault]:
    if recipe.model.frozen is not None and recipe.model.lora is None:
        yield Fault(
            path=("model", "frozen"),
            message="packed weights cannot be trained: give model.lora, or leave frozen out",
        )


def _engine(recipe: Recipe) -> Iterator[Fault]:
    if recipe.engine.kind == "openai":
        yield Fault(
            path=("engine", "kind"),
            message="openai serves judging only: put it under sft.judge_engine",
        )


def _adapter_sync(recipe: Recipe) -> Iterator[Fault]:
    """An engine whose weights are not the policy's own can take an adapter, and nothing else."""
    engine = recipe.engine
    for key in ("quantization", "checkpoint"):
        if getattr(engine, key) is not None and engine.sync != "adapter":
            message = "its weights cannot be replaced by the policy's: set engine.sync: adapter"
            yield Fault(path=("engine", key), message=message)
    if engine.quantization is not None and engine.checkpoint is not None:
        message = "engine.checkpoint is quantised already: give one of the two"
        yield Fault(path=("engine", "quantization"), message=message)
    if engine.sync == "adapter" and recipe.model.lora is None:
        message = "adapter needs model.lora: with full training there is none to hand over"
        yield Fault(path=("engine", "sync"), message=message)


def _placement(recipe: Recipe) -> Iterator[Fault]:
    if recipe.rl is None:
        return
    processes, spans = recipe.launch.num_processes, recipe.engine.tensor_parallel_size
    if processes % spans:
        message = (
            f"an engine spans {spans} devices, and {processes} training processes "
            f"(launch.num_processes) are not whole groups of {spans}: "
            f"make them {_nearest_multiples(processes, spans)}"
        )
        yield Fault(path=("engine", "tensor_parallel_size"), message=message)
    if recipe.rl.offload_policy and processes > 1:
        message = f"needs launch.num_processes: 1, and there are {processes}"
        yield Fault(path=("rl", "offload_policy"), message=message)


def _balancing(recipe: Recipe) -> Iterator[Fault]:
    """With LoRA the load-balancing loss would see the frozen router's own logits alone."""
    if recipe.model.lora is None:
        return
    for stage in ("sft", "rl", "dpo"):
        section = getattr(recipe, stage)
        if section is not None and section.trainer.get("router_aux_loss_coef"):
            message = "the load-balancing loss is for full training: set model.lora: null"
            yield Fault(path=(stage, "trainer", "router_aux_loss_coef"), message=message)


def _stages(recipe: Recipe) -> Iterator[Fault]:
    if recipe.sft is None and recipe.rl is None:
        yield Fault(path=(), message="nothing to do: give at least one of the sections sft and rl")
    if recipe.dpo is not None and recipe.rl is None:
        yield Fault(
            path=("dpo",),
            message="mines its pairs from RL rollouts: add an rl section or leave dpo out",
        )


def _answer_judge(recipe: Recipe) -> Iterator[Fault]:
    if needs(recipe, "judge") and recipe.answer_judge is None:
        message = "is required: data has verifier: judge. Write answer_judge: {rubric: ...}"
        yield Fault(path=("answer_judge",), message=message)


def _rl_verifiers(recipe: Recipe) -> Iterator[Fault]:
    if recipe.rl is not None:
        yield from _undecided(("rl", "data"), recipe.rl.data)


def _suite_verifiers(recipe: Recipe) -> Iterator[Fault]:
    for i, suite in enumerate(recipe.eval.suites):
        if not isinstance(suite, str):
            yield from _undecided(("eval", "suites", i, "data"), suite.data)


def _undecided(path: tuple[str | int, ...], sources: list[DataSource]) -> Iterator[Fault]:
    for i, source in enumerate(sources):
        if source.path is not None and source.verifier is None:
            choices = "math, exact, choice, code, instructions or judge"
            message = f"nothing can decide its answers: write verifier: {choices}"
            yield Fault(path=(*path, i, "verifier"), message=message)


def _eval(recipe: Recipe) -> Iterator[Fault]:
    spec = recipe.eval
    if recipe.rl is None and "heldout" in spec.suites and recipe.sft is not None:
        message = "heldout is taken from rl.data, and there is none: give suites of your own, or []"
        yield Fault(path=("eval", "suites"), message=message)
    names = ["heldout" if suite == "heldout" else suite.name for suite in spec.suites]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield Fault(path=("eval", "suites", index), message=f"a second suite called {name!r}")
    if "after" in spec.model_fields_set:
        for index, stage in enumerate(spec.after):
            if stage != "base" and getattr(recipe, stage) is None:
                yield Fault(path=("eval", "after", index), message=f"there is no {stage} section")
            if stage in spec.after[:index]:
                yield Fault(path=("eval", "after", index), message=f"{stage} is named twice")


def _lengths(recipe: Recipe) -> Iterator[Fault]:
    room = recipe.engine.max_model_len
    asked: list[tuple[tuple[str, ...], Any]] = [(("eval", "max_tokens"), recipe.eval.max_tokens)]
    if recipe.sft is not None and recipe.sft.judge is not None and recipe.sft.pilot.num_samples:
        asked.append((("sft", "pilot", "max_tokens"), recipe.sft.pilot.max_tokens))
    if recipe.rl is not None:
        asked.append(
            (("rl", "trainer", "max_completion_length"), _setting(recipe, "max_completion_length"))
        )
    for path, tokens in asked:
        if isinstance(tokens, int) and tokens >= room:
            message = f"{tokens} tokens leave no room for a prompt in engine.max_model_len ({room})"
            yield Fault(path=path, message=message)


def _setting(recipe: Recipe, key: str) -> Any:
    """What GRPOConfig will see for `key`: the recipe's value, else TRL's default."""
    assert recipe.rl is not None
    return recipe.rl.trainer.get(key, trainer_fields("rl")[key].default)


def _generation_batch(recipe: Recipe) -> Iterator[Fault]:
    """GRPO's arithmetic, as in GRPOConfig.__post_init__ and GRPOTrainer._prepare_inputs."""
    if recipe.rl is None:
        return

    def at(key: str) -> tuple[str, ...]:
        return ("rl", "trainer", key)

    counts = (
        "num_generations",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "num_iterations",
    )
    values = {key: _setting(recipe, key) for key in counts}
    low = {key: 2 if key == "num_generations" else 1 for key in counts}
    for key in ("generation_batch_size", "steps_per_generation"):
        if (value := recipe.rl.trainer.get(key)) is not None:
            values[key], low[key] = value, 1
    bad = [key for key, value in values.items() if not isinstance(value, int) or value < low[key]]
    for key in bad:
        why = ": one answer has nothing to be compared with" if key == "num_generations" else ""
        yield Fault(path=at(key), message=f"must be at least {low[key]}, is {values[key]}{why}")
    if bad:
        return
    if "generation_batch_size" in values and "steps_per_generation" in values:
        yield Fault(
            path=at("steps_per_generation"), message="give it or generation_batch_size, not both"
        )
        return
    yield from _batch_shape(recipe, values)


def _batch_shape(recipe: Recipe, values: Mapping[str, int]) -> Iterator[Fault]:
    assert recipe.rl is not None
    group = values["num_generations"]
    device, processes = values["per_device_train_batch_size"], recipe.launch.num_processes
    accumulation = values["gradient_accumulation_steps"]
    given = [key for key in values if key in recipe.rl.trainer]
    place = "num_generations" if "num_generations" in given or not given else given[0]
    if "generation_batch_size" in values:
        batch = values["generation_batch_size"]
        place = "generation_batch_size"
        sum_text = f"generation_batch_size {batch}"
        if batch % (device * processes):
            near = _nearest_multiples(batch, math.lcm(device * processes, group))
            message = f"{batch} does not divide into steps of {device} x {processes} (per_device_train_batch_size x launch.num_processes): {near} would"  # noqa: E501
            yield Fault(path=("rl", "trainer", place), message=message)
            return
        per_generation = batch // (device * processes)
    else:
        key = (
            "steps_per_generation"
            if "steps_per_generation" in values
            else "gradient_accumulation_steps"
        )
        per_generation = values.get("steps_per_generation", accumulation)
        batch = device * per_generation * processes
        sum_text = (
            f"{device} x {per_generation} x {processes} = {batch} "
            f"(per_device_train_batch_size x {key} x launch.num_processes)"
        )
    if batch % group:
        fits = ", ".join(str(number) for number in _nearest_divisors(batch, group))
        size = _nearest_multiples(batch, group)
        advice = (
            f"num_generations {fits} would divide it"
            if fits
            else "more is needed for two answers a prompt"
        )
        message = (
            f"the generation batch {sum_text} is not whole groups of {group}: "
            f"{advice}; or make the batch {size}"
        )
        yield Fault(path=("rl", "trainer", place), message=message)
        return
    yield from _save_boundary(recipe, per_generation * values["num_iterations"], accumulation)


def _save_boundary(recipe: Recipe, micro_steps: int, accumulation: int) -> Iterator[Fault]:
    """A checkpoint between two generations would lose rollouts that are not yet trained on."""
    assert recipe.rl is not None
    every = micro_steps // math.gcd(micro_steps, accumulation)
    save = recipe.rl.trainer.get("save_steps")
    path = ("rl", "trainer", "save_steps")
    if save is None:
        if every > 1:
            message = (
                "the default, a fifth of the run, may fall between two generations, which begin "
                f"every {every} steps: give a multiple of {every}"
            )
            yield Fault(path=path, message=message)
        return
    if save < 1 or save != int(save):
        yield Fault(path=path, message=f"must be a whole number of steps here, is {save:g}")
        return
    if int(save) % every:
        near = _nearest_multiples(int(save), every)
        message = (
            f"{save:g} falls between two generations, which begin every {every} steps: "
            f"{near} would not"
        )
        yield Fault(path=path, message=message)


def _nearest_multiples(number: int, of: int) -> str:
    below, above = number // of * of, -(-number // of) * of
    return " or ".join(str(n) for n in dict.fromkeys((below, above)) if n > 0)


def _nearest_divisors(number: int, near: int) -> list[int]:
    divisors = [d for d in range(2, min(number, 8 * near) + 1) if number % d == 0]
    return sorted(sorted(divisors, key=lambda d: abs(d - near))[:3])
