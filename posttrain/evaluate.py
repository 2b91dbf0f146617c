"""Held-out evaluation: the same prompts, seeds and sampling after every stage."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from posttrain.engines import Engine, SamplingRequest
from posttrain.engines.rollouts import roll_out
from posttrain.kill_points import kill_point
from posttrain.progress import progress
from posttrain.recipe.schema import Eval
from posttrain.records import Prompt, RolloutGroup

PROMPTS_PER_BATCH = 64


def evaluate(
    prompts: Sequence[Prompt],
    *,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    spec: Eval,
    seed: int,
    label: str = "evaluate",
) -> list[RolloutGroup]:
    """Sample `num_generations` answers per prompt and verify them.

    Groups come in the prompts' order, with step 0.
    """
    groups: list[RolloutGroup] = []
    with progress(label, total=len(prompts)) as bar:
        for start in range(0, len(prompts), PROMPTS_PER_BATCH):
            batch = prompts[start : start + PROMPTS_PER_BATCH]
            request = SamplingRequest(
                num_generations=spec.num_generations,
                max_tokens=spec.max_tokens,
                temperature=spec.temperature,
                seed=seed + start,
            )
            groups += roll_out(batch, engine, tokenizer, request)
            kill_point(f"{label}.after_generate")
            bar.advance(len(batch))
    return groups
