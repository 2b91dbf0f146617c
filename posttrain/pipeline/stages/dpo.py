"""dpo: a light DPO on preference pairs, from the policy after RL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.artefacts import PAIRS
from posttrain.pipeline import keys
from posttrain.pipeline.stage import Counts, Stage, StageContext, finish, starting_policy
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.schema import Dpo


def run(context: StageContext, section: Dpo) -> Counts:
    """Train the policy after RL on the pairs."""
    from posttrain import dpo

    summary = dpo.train(
        PAIRS.read(context.inputs["pairs"]),
        policy=starting_policy(context),
        model=context.recipe.model,
        trainer=section.trainer,
        seed=context.seed,
        work_dir=context.work_dir,
        out_dir=context.out_dir,
    )
    return finish(context, summary, ("steps", "tokens", "pairs", "too_long"))


def depends_on(loaded: LoadedRecipe, _section: Dpo) -> Mapping[str, Any]:
    """Return the trainer block, model and launch."""
    return {"dpo": {"trainer": keys.trainer_values(loaded, "dpo")}, **keys.training_values(loaded)}


STAGE = Stage(
    name="dpo",
    version=1,
    section=lambda recipe: recipe.dpo,
    run=run,
    reads=("model", "rl", "pairs"),
    depends_on=depends_on,
    loads_models=True,
    is_training=True,
)
