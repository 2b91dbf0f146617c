"""Prompts in, verified groups of rollouts out."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from posttrain.engines.base import Completion, Engine, SamplingRequest
from posttrain.models import prompt_ids
from posttrain.records import Prompt, Rollout, RolloutGroup
from posttrain.rewards import verify


def roll_out(
    prompts: Sequence[Prompt],
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    request: SamplingRequest,
    *,
    step: int = 0,
) -> list[RolloutGroup]:
    """Sample `request.num_generations` answers per prompt, verify them, keep the prompts' order."""
    completions_P_G = engine.generate([prompt_ids(tokenizer, p.messages) for p in prompts], request)
    return [
        RolloutGroup(
            prompt_id=prompt.prompt_id,
            step=step,
            policy_version=engine.policy_version,
            rollouts=tuple(_rollout(prompt, completion, tokenizer) for completion in completions_G),
        )
        for prompt, completions_G in zip(prompts, completions_P_G, strict=True)
    ]


def _rollout(prompt: Prompt, completion: Completion, tokenizer: PreTrainedTokenizerBase) -> Rollout:
    text = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return Rollout(
        completion_ids=completion.token_ids,
        logprobs=completion.logprobs,
        text=text,
        finish_reason=completion.finish_reason,
        outcome=verify(prompt, text, truncated=completion.finish_reason == "length"),
    )
