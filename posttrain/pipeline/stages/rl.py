"""rl: train by online RL on the prompts that the curriculum chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.pipeline import keys
from posttrain.pipeline.stage import (
    Counts,
    Estimate,
    Stage,
    StageContext,
    finish,
    starting_policy,
)
from posttrain.pipeline.stages import data, judge
from posttrain.pipeline.verifying import verifier_files, verifiers_ready
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.schema import Recipe, Rl

COUNTS = ("steps", "tokens", "groups", "rollouts", "generated_tokens", "scored_tokens")


def run(context: StageContext, section: Rl) -> Counts:
    """Train the latest policy by online RL."""
    from posttrain import rl
    from posttrain.data import levelled_families, question_hashes
    from posttrain.lengths import check_prompt_lengths
    from posttrain.models import load_tokenizer

    recipe = context.recipe
    prompts, policy = data.prompts(context), starting_policy(context)
    check_prompt_lengths(
        prompts,
        load_tokenizer(policy.base),
        max_model_len=recipe.engine.max_model_len,
        systems=section.system_prompts,
    )
    inputs = rl.RlInputs(
        prompts=prompts,
        policy=policy,
        tags=judge.tags(context),
        families=[
            family
            for i, source in enumerate(section.data)
            for family in levelled_families(source, f"rl.data[{i}]")
        ],
        held_out=frozenset(
            hashed
            for suite in data.suites(context).values()
            for prompt in suite
            for hashed in question_hashes(prompt)
        ),
    )
    with verifiers_ready(context, prompts):
        summary = rl.train(
            section,
            inputs,
            model=recipe.model,
            engine=recipe.engine,
            seed=context.seed,
            work_dir=context.work_dir,
            out_dir=context.out_dir,
        )
    return finish(context, summary, COUNTS)


def depends_on(loaded: LoadedRecipe, _section: Rl) -> Mapping[str, Any]:
    """Return the rl section without its data and without keys that cannot change the result."""
    section = loaded.written["rl"]
    names = ("pilot_prompts", "system_prompts", "variants", "shaping")
    curriculum = {k: v for k, v in section["curriculum"].items() if k != "max_steps_without_signal"}
    return {
        "rl": {
            "curriculum": curriculum,
            "trainer": keys.trainer_values(loaded, "rl"),
            **{name: section[name] for name in names},
        },
        "engine": keys.engine_values(loaded.written["engine"]),
        **keys.training_values(loaded),
        **keys.answer_judge_values(loaded),
        **keys.sandbox_limits(loaded),
        **keys.function_limits(loaded, "rl"),
    }


def estimate(recipe: Recipe, section: Rl, rows: Mapping[str, int | None]) -> Estimate:
    """Estimate tokens: max_steps x completions x max_completion_length, without refills."""
    block = section.trainer
    prompts = rows["rl"]
    if block.max_steps > 0:
        completions = block.max_steps * keys.batch_size(block, recipe)
        tokens = completions * block.max_completion_length
    elif prompts is None:
        tokens = None
    else:
        groups = int(prompts * block.num_train_epochs)
        tokens = groups * block.num_generations * block.max_completion_length
    return Estimate(rows={"rl": prompts}, tokens={"rl": tokens})


STAGE = Stage(
    name="rl",
    version=2,
    section=lambda recipe: recipe.rl,
    run=run,
    reads=("model", "data", "judge", "sft"),
    depends_on=depends_on,
    files=verifier_files("rl"),
    estimate=estimate,
    loads_models=True,
    is_training=True,
)
