"""Check how the sections of a recipe fit together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from posttrain.recipe.batches import check_generation_batch, nearest_multiples
from posttrain.recipe.problems import KeyPath, Mistake, dotted, nearest, show
from posttrain.recipe.rows import CHOOSABLE, DataSource
from posttrain.recipe.schema import MIN_MEASURED, Recipe, needs, training_stages, user_functions
from posttrain.rewards import VERIFIERS, UserFunction

VLLM_ONLY = ("tensor_parallel_size", "quantization", "checkpoint", "sync", "enable_sleep_mode")
"""Keys of the engine section that other engines ignore."""


def check_sections(recipe: Recipe, unsound: frozenset[str]) -> list[Mistake]:
    """Return every clash between sections; a rule that reads an `unsound` section is left out."""
    training = set(training_stages())
    rules: list[tuple[set[str], Callable[[Recipe], Iterator[Mistake]]]] = [
        ({"model"}, _model),
        ({"engine"}, _engine),
        ({"engine", "model"}, _adapter_sync),
        ({"engine", "launch", "rl"}, _placement),
        ({"model", *training}, _balancing),
        (training, _stages),
        ({"sft", "rl", "eval", "answer_judge"}, _answer_judge),
        ({"eval", *training}, _eval),
        ({"engine", "eval", "sft", "rl"}, _lengths),
        ({"rl", "launch"}, check_generation_batch),
        ({"dpo"}, _dpo_loss),
        ({"sft"}, _judge_check),
        ({"sft", "eval"}, _levels),
        ({"rl"}, _curriculum),
        ({"rl"}, _rl_verifiers),
        ({"eval"}, _suite_verifiers),
        ({"sft", "rl", "dpo", "eval"}, _functions),
    ]
    return [mistake for reads, rule in rules if not reads & unsound for mistake in rule(recipe)]


def _curriculum(recipe: Recipe) -> Iterator[Mistake]:
    """Check quotas and baseline of the curriculum against the rest of the rl section."""
    if recipe.rl is None:
        return
    quotas = recipe.rl.curriculum.quotas or {}
    known = {name for source in recipe.rl.data for name in capabilities(source)}
    at = ("rl", "curriculum", "quotas")
    for name in quotas:
        if name not in known:
            message = f"rl.data has no such capability, only {', '.join(sorted(known))}"
            yield Mistake(path=(*at, name), message=message, suggestion=nearest(name, known))
    if quotas and not any(quotas.values()):
        yield Mistake(path=at, message="every share is 0: give at least one capability a share")
    baseline = getattr(recipe.rl.curriculum, "baseline", "group")
    if recipe.rl.shaping is not None and baseline != "group":
        message = (
            f"has no effect with the curriculum's baseline {baseline}, which takes no rewards: "
            "leave one of the two out"
        )
        yield Mistake(path=("rl", "shaping"), message=message)


def capabilities(source: DataSource) -> list[str]:
    """Return the capabilities that a source's rows are tagged with."""
    if source.capability is not None:
        return [source.capability]
    if source.generated is not None:
        return list(source.generated.named)
    return list(source.reasoning_gym or ())


def _judge_check(recipe: Recipe) -> Iterator[Mistake]:
    """Refuse a judge that must pass its check where the check has nothing to measure."""
    sft = recipe.sft
    if sft is None or sft.judge is None or not sft.prune.require_check:
        return
    if not sft.prune.drop_easiest:
        return
    so = "so the judge cannot be checked, and nothing would be pruned"
    anyway = "or set sft.prune.require_check: false to prune unchecked"
    if sft.pilot.num_samples < MIN_MEASURED:
        message = f"{sft.pilot.num_samples}, {so}: raise it to {MIN_MEASURED} or more, {anyway}"
        yield Mistake(path=("sft", "pilot", "num_samples"), message=message)
    elif not any(source.verifiers for source in sft.data):
        message = f"no source has a verifier, {so}: give one a verifier, {anyway}"
        yield Mistake(path=("sft", "data"), message=message)


def _levels(recipe: Recipe) -> Iterator[Mistake]:
    """Refuse levels outside of rl.data: they follow the policy, which only RL changes."""
    places: list[tuple[KeyPath, list[DataSource]]] = []
    if recipe.sft is not None:
        places.append((("sft", "data"), recipe.sft.data))
    for i, suite in enumerate(recipe.eval.suites):
        if not isinstance(suite, str):
            places.append((("eval", "suites", i, "data"), suite.data))
    for path, sources in places:
        for i, source in enumerate(sources):
            if source.levels is not None:
                yield Mistake(
                    path=(*path, i, "levels"),
                    message="levels move in rl.data only: give the family's own keys here",
                )


def notes(recipe: Recipe) -> Iterator[Mistake]:
    """Yield what has no effect in this recipe, or needs a package that is not installed."""
    if recipe.answer_judge is not None and not needs(recipe, "answer_judge"):
        message = "has no effect: no data has verifier: judge"
        yield Mistake(path=("answer_judge",), message=message)
    for section, data in (("sft", recipe.sft), ("rl", recipe.rl)):
        for index, source in enumerate(data.data if data else ()):
            for name in source.verifiers:
                package = VERIFIERS[name].package if name in VERIFIERS else None
                if package is not None and (missing := ", ".join(package.missing)):
                    message = f"verifier {name} needs {missing}: pip install '{package.install}'"
                    yield Mistake(path=(section, "data", index), message=message)
    sft = recipe.sft
    if sft is not None and sft.judge is None:
        for key in ("prune", "pilot", "judge_engine"):
            if key in sft.model_fields_set and getattr(sft, key) is not None:
                yield Mistake(path=("sft", key), message="has no effect without sft.judge")
    if (
        sft is not None
        and sft.judge_engine is None
        and sft.judge is not None
        and sft.pilot.num_samples == 0
    ):
        yield Mistake(
            path=("sft", "pilot", "num_samples"),
            message="0: nothing will say whether the judge is any good",
        )
    if recipe.launch.strategy == "fsdp" and recipe.launch.num_processes == 1:
        yield Mistake(
            path=("launch", "strategy"), message="fsdp has nothing to shard over with one process"
        )
    if recipe.engine.kind == "transformers":
        for key in VLLM_ONLY:
            if key in recipe.engine.model_fields_set:
                yield Mistake(path=("engine", key), message="has no effect without vLLM")


def _model(recipe: Recipe) -> Iterator[Mistake]:
    if recipe.model.frozen is not None and recipe.model.lora is None:
        yield Mistake(
            path=("model", "frozen"),
            message="packed weights cannot be trained: give model.lora, or leave frozen out",
        )


def _engine(recipe: Recipe) -> Iterator[Mistake]:
    if recipe.engine.kind == "openai":
        yield Mistake(
            path=("engine", "kind"),
            message="openai serves judging only: put it under sft.judge_engine",
        )


def _adapter_sync(recipe: Recipe) -> Iterator[Mistake]:
    """Require sync: adapter of an engine whose weights are not the policy's own."""
    engine = recipe.engine
    for key in ("quantization", "checkpoint"):
        if getattr(engine, key) is not None and engine.sync != "adapter":
            message = "its weights cannot be replaced by the policy's: set engine.sync: adapter"
            yield Mistake(path=("engine", key), message=message)
    if engine.quantization is not None and engine.checkpoint is not None:
        message = "engine.checkpoint is quantised already: give one of the two"
        yield Mistake(path=("engine", "quantization"), message=message)
    if engine.sync == "adapter" and recipe.model.lora is None:
        message = "adapter needs model.lora: with full training there is none to hand over"
        yield Mistake(path=("engine", "sync"), message=message)


def _placement(recipe: Recipe) -> Iterator[Mistake]:
    if recipe.rl is None:
        return
    processes, spans = recipe.launch.num_processes, recipe.engine.tensor_parallel_size
    if processes % spans:
        message = (
            f"an engine spans {spans} devices, and {processes} training processes "
            f"(launch.num_processes) are not whole groups of {spans}: "
            f"make them {nearest_multiples(processes, spans)}"
        )
        yield Mistake(path=("engine", "tensor_parallel_size"), message=message)
    if recipe.rl.offload_policy and processes > 1:
        message = f"needs launch.num_processes: 1, and there are {processes}"
        yield Mistake(path=("rl", "offload_policy"), message=message)


def _balancing(recipe: Recipe) -> Iterator[Mistake]:
    """Refuse a load-balancing loss with LoRA, whose router is frozen."""
    if recipe.model.lora is None:
        return
    for stage, section in recipe.training.items():
        if section.trainer.router_aux_loss_coef:
            message = "the load-balancing loss is for full training: set model.lora: null"
            yield Mistake(path=(stage, "trainer", "router_aux_loss_coef"), message=message)


def _stages(recipe: Recipe) -> Iterator[Mistake]:
    if recipe.sft is None and recipe.rl is None:
        message = "nothing to do: give at least one of the sections sft and rl"
        yield Mistake(path=(), message=message)
    if recipe.dpo is not None and recipe.rl is None:
        yield Mistake(
            path=("dpo",),
            message="mines its pairs from RL rollouts: add an rl section or leave dpo out",
        )


def _answer_judge(recipe: Recipe) -> Iterator[Mistake]:
    if needs(recipe, "answer_judge") and recipe.answer_judge is None:
        message = "is required: data has verifier: judge. Write answer_judge: {rubric: ...}"
        yield Mistake(path=("answer_judge",), message=message)


def _rl_verifiers(recipe: Recipe) -> Iterator[Mistake]:
    if recipe.rl is not None:
        yield from _undecided(("rl", "data"), recipe.rl.data)


def _suite_verifiers(recipe: Recipe) -> Iterator[Mistake]:
    for i, suite in enumerate(recipe.eval.suites):
        if not isinstance(suite, str):
            yield from _undecided(("eval", "suites", i, "data"), suite.data)


def _undecided(path: KeyPath, sources: list[DataSource]) -> Iterator[Mistake]:
    for i, source in enumerate(sources):
        if source.path is not None and source.verifier is None:
            message = (
                f"nothing decides its answers: give verifier one of {CHOOSABLE}, or a function of "
                "your own, {python: file.py:name}"
            )
            yield Mistake(path=(*path, i, "verifier"), message=message)


def _functions(recipe: Recipe) -> Iterator[Mistake]:
    """Refuse two functions of one name that differ: tables name them by it."""
    known: dict[str, tuple[KeyPath, UserFunction]] = {}
    for path, function in user_functions(recipe):
        first, other = known.setdefault(function.name, (path, function))
        if other != function:
            message = f"called {function.name} like {dotted(first)}, and they differ"
            yield Mistake(path=path, message=f"{message}: write both alike, or rename one file")


def _eval(recipe: Recipe) -> Iterator[Mistake]:
    spec = recipe.eval
    if recipe.rl is None and "heldout" in spec.suites and recipe.sft is not None:
        message = "heldout is taken from rl.data, and there is none: give suites of your own, or []"
        yield Mistake(path=("eval", "suites"), message=message)
    names = ["heldout" if suite == "heldout" else suite.name for suite in spec.suites]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield Mistake(path=("eval", "suites", index), message=f"a second suite called {name!r}")
    points = ["base", *training_stages()]
    for index, stage in enumerate(spec.after if "after" in spec.model_fields_set else []):
        at = ("eval", "after", index)
        if stage not in points:
            message = f"expected one of {', '.join(points)}, found {show(stage)}"
            yield Mistake(path=at, message=message, suggestion=nearest(stage, points))
        elif stage not in ("base", *recipe.training):
            yield Mistake(path=at, message=f"there is no {stage} section")
        if stage in spec.after[:index]:
            yield Mistake(path=at, message=f"{stage} is named twice")


def _lengths(recipe: Recipe) -> Iterator[Mistake]:
    room = recipe.engine.max_model_len
    asked: list[tuple[KeyPath, int]] = []
    if recipe.eval.suites:
        asked.append((("eval", "max_tokens"), recipe.eval.max_tokens))
    if recipe.sft is not None and recipe.sft.judge is not None and recipe.sft.pilot.num_samples:
        asked.append((("sft", "pilot", "max_tokens"), recipe.sft.pilot.max_tokens))
    if recipe.rl is not None:
        path = ("rl", "trainer", "max_completion_length")
        asked.append((path, recipe.rl.trainer.max_completion_length))
    for path, tokens in asked:
        if tokens >= room:
            message = f"{tokens} tokens leave no room for a prompt in engine.max_model_len ({room})"
            yield Mistake(path=path, message=message)


def _dpo_loss(recipe: Recipe) -> Iterator[Mistake]:
    """Refuse beta 0 unless no loss has it as a factor."""
    if recipe.dpo is None or recipe.dpo.trainer.beta > 0:
        return
    losses = recipe.dpo.trainer.loss_type
    if set([losses] if isinstance(losses, str) else losses) != {"sft"}:
        message = "must be above 0, is 0: with 0 nothing would be learned"
        yield Mistake(path=("dpo", "trainer", "beta"), message=message)
