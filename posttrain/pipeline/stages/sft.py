"""sft: fine-tune the base on what pruning kept."""

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
from posttrain.pipeline.stages import judge, prune
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.schema import Recipe, Sft


def run(context: StageContext, section: Sft) -> Counts:
    """Fine-tune the base on the kept samples, unscored ones included."""
    from posttrain import sft

    summary = sft.train(
        prune.kept_samples(context),
        policy=starting_policy(context),
        model=context.recipe.model,
        trainer=section.trainer,
        seed=context.seed,
        work_dir=context.work_dir,
        out_dir=context.out_dir,
    )
    return finish(context, summary, ("steps", "tokens", "samples", "too_long"))


def depends_on(loaded: LoadedRecipe, _section: Sft) -> Mapping[str, Any]:
    """Return the trainer block, model and launch."""
    return {"sft": {"trainer": keys.trainer_values(loaded, "sft")}, **keys.training_values(loaded)}


def estimate(recipe: Recipe, section: Sft, rows: Mapping[str, int | None]) -> Estimate:
    """Estimate tokens: rows x epochs x max_length, or max_steps x batch x max_length."""
    kept = rows["sft"]
    if kept is not None and judge.section_of(recipe) and not section.prune.require_check:
        kept -= int(kept * section.prune.drop_easiest)
    block = section.trainer
    max_length = block.max_length or recipe.engine.max_model_len
    if block.max_steps > 0:
        tokens = block.max_steps * keys.batch_size(block, recipe) * max_length
    elif kept is None:
        tokens = None
    else:
        tokens = int(kept * block.num_train_epochs) * max_length
    return Estimate(rows={"sft": rows["sft"]}, tokens={"sft": tokens})


STAGE = Stage(
    name="sft",
    version=1,
    section=lambda recipe: recipe.sft,
    run=run,
    reads=("model", "data", "prune"),
    depends_on=depends_on,
    estimate=estimate,
    loads_models=True,
    is_training=True,
)
