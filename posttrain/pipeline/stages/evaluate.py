"""eval-base, eval-sft, ...: the held-out suites, answered by the policy after a training stage."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

from posttrain import metrics
from posttrain.artefacts import (
    BASE,
    EVALUATION,
    CapabilityResult,
    EvaluationResult,
    SuiteResult,
    outcomes_name,
)
from posttrain.metrics import Interval
from posttrain.pipeline import keys
from posttrain.pipeline.stage import Counts, Estimate, Stage, StageContext, starting_policy
from posttrain.pipeline.stages import data, model
from posttrain.pipeline.verifying import verifier_files, verifiers_ready
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.cross import capabilities
from posttrain.recipe.schema import Eval, Recipe
from posttrain.records import Prompt, RolloutGroup
from posttrain.tables import write_groups


def run(context: StageContext, section: Eval) -> Counts:
    """Sample and verify answers to every suite, with the same seed for every policy."""
    from posttrain.engines import SamplingRequest, make_engine
    from posttrain.engines.rollouts import roll_out_in_batches
    from posttrain.lengths import check_prompt_lengths
    from posttrain.models import load_tokenizer

    recipe = context.recipe
    policy = starting_policy(context)
    tokenizer = load_tokenizer(policy.base)
    started = time.monotonic()
    results: dict[str, SuiteResult] = {}
    suites = data.suites(context)
    everyone = [prompt for prompts in suites.values() for prompt in prompts]
    check_prompt_lengths(everyone, tokenizer, max_model_len=recipe.engine.max_model_len)
    request = SamplingRequest(
        num_generations=section.num_generations,
        max_tokens=section.max_tokens,
        temperature=section.temperature,
        seed=context.seed,
    )
    engine = make_engine(recipe.engine, policy, dtype=recipe.model.dtype, seed=context.seed)
    with closing(engine), verifiers_ready(context, everyone):
        for name, prompts in suites.items():
            label = context.stage if name == "heldout" else f"{context.stage} {name}"
            began = time.monotonic()
            after_batch = f"{label}.after_generate"
            groups = roll_out_in_batches(
                prompts, engine, tokenizer, request, label=label, after_batch=after_batch
            )
            by_id = {prompt.prompt_id: prompt for prompt in prompts}
            write_groups(context.out_dir / outcomes_name(name), groups, by_id)
            capabilities, macro = summarise(prompts, groups, pass_at=section.pass_at)
            results[name] = SuiteResult(
                capabilities=capabilities,
                macro=macro,
                tokens=_num_tokens(groups),
                seconds=time.monotonic() - began,
            )
    tokens = sum(result.tokens for result in results.values())
    seconds = time.monotonic() - started
    EvaluationResult(suites=results, tokens=tokens, seconds=seconds).write(context.out_dir)
    return {"prompts": len(everyone), "tokens": tokens}


def depends_on(loaded: LoadedRecipe, _section: Eval) -> Mapping[str, Any]:
    """Return the keys that decide how answers are sampled and verified."""
    names = ("num_generations", "temperature", "max_tokens", "pass_at")
    return {
        "eval": {name: loaded.written["eval"][name] for name in names},
        "engine": keys.engine_values(loaded.written["engine"]),
        "model": {"dtype": loaded.written["model"]["dtype"]},
        **keys.answer_judge_values(loaded),
        **keys.sandbox_limits(loaded),
        **keys.function_limits(loaded, "rl", "eval"),
    }


def estimate(recipe: Recipe, section: Eval, _rows: Mapping[str, int | None]) -> Estimate:
    """Estimate tokens of the suite `heldout`: prompts x num_generations x max_tokens."""
    if recipe.rl is None or "heldout" not in section.suites:
        return Estimate()
    names = {name for source in recipe.rl.data for name in capabilities(source)}
    tokens = section.heldout_size * len(names) * section.num_generations * section.max_tokens
    return Estimate(tokens={"each evaluation": tokens})


def summarise(
    prompts: Sequence[Prompt], groups: Sequence[RolloutGroup], *, pass_at: Sequence[int]
) -> tuple[dict[str, CapabilityResult], Interval]:
    """Return the result of each capability, and pass@1 averaged over them."""
    from posttrain.rewards import find_verifier, verify

    def passes(prompt: Prompt, text: str) -> bool:
        return verify(prompt, text).passed is True

    by_capability: dict[str, list[RolloutGroup]] = {}
    for prompt, group in zip(prompts, groups, strict=True):
        by_capability.setdefault(prompt.capability, []).append(group)
    capabilities: dict[str, CapabilityResult] = {}
    for name, own in sorted(by_capability.items()):
        asked = [prompt for prompt in prompts if prompt.capability == name]
        is_open = any(find_verifier(prompt.verifier).is_open for prompt in asked)
        constant = math.nan if is_open else metrics.best_constant_answer(asked, passes, groups=own)
        capabilities[name] = CapabilityResult(
            pass_at_1=metrics.pass_rate_interval(own),
            pass_at_k={k: metrics.mean_pass_at_k(own, k) for k in pass_at},
            constant=constant,
            num_prompts=len(own),
            tokens=_num_tokens(own),
        )
    return capabilities, metrics.macro_pass_at_1(by_capability)


def _num_tokens(groups: Sequence[RolloutGroup]) -> int:
    return sum(len(r.completion_ids) for group in groups for r in group.rollouts)


def before_training() -> Stage[Eval]:
    """Return the row that evaluates the base."""
    return _row(BASE, (), lambda recipe: recipe.eval)


def after(stage: Stage[Any]) -> Stage[Eval]:
    """Return the row that evaluates a training stage's policy."""
    return _row(
        stage.name,
        (stage.name,),
        lambda recipe: None if stage.section(recipe) is None else recipe.eval,
    )


def _row(
    point: str, policy: tuple[str, ...], section: Callable[[Recipe], Eval | None]
) -> Stage[Eval]:
    return Stage(
        name=f"{EVALUATION}{point}",
        version=2,
        section=lambda recipe: (
            section(recipe) if recipe.eval.suites and point in recipe.eval.after else None
        ),
        run=run,
        reads=(model.STAGE.name, data.STAGE.name, *policy),
        depends_on=depends_on,
        files=verifier_files("rl", "eval"),
        estimate=estimate,
        seed_name="eval",
        loads_models=True,
    )
