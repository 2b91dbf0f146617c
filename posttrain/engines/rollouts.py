"""Rollouts: completions sampled from an engine, verified and grouped by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from posttrain.engines.engine import Completion, Engine, SamplingRequest
from posttrain.models import prompt_ids
from posttrain.records import Outcome, Prompt, Rollout, RolloutGroup
from posttrain.rewards import settle, submit_group


def roll_out(
    prompts: Sequence[Prompt],
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    request: SamplingRequest,
    *,
    step: int = 0,
) -> list[RolloutGroup]:
    """Sample and verify `request.num_generations` completions per prompt, in the prompts' order.

    Verifiers run while the engine still generates; a verifier that asks a model runs afterwards.
    """
    answers: dict[int, list[_Answer]] = {}

    def verify_group(index: int, completions_G: list[Completion]) -> None:
        texts = [_text(completion, tokenizer) for completion in completions_G]
        cut = [completion.finish_reason == "length" for completion in completions_G]
        outcomes = submit_group(prompts[index], list(zip(texts, cut, strict=True)))
        answers[index] = [
            _Answer(completion=completion, text=text, outcome=outcome)
            for completion, text, outcome in zip(completions_G, texts, outcomes, strict=True)
        ]

    completions_P_G = engine.generate(
        [prompt_ids(tokenizer, p.messages) for p in prompts], request, on_done=verify_group
    )
    assert len(answers) == len(completions_P_G), "the engine must call on_done for every prompt"
    settle()
    return [
        RolloutGroup(
            prompt_id=prompt.prompt_id,
            step=step,
            policy_version=engine.policy_version,
            rollouts=tuple(_rollout(answer) for answer in answers[index]),
        )
        for index, prompt in enumerate(prompts)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    completion: Completion
    text: str
    outcome: Future[Outcome]


def _text(completion: Completion, tokenizer: PreTrainedTokenizerBase) -> str:
    text = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def _rollout(answer: _Answer) -> Rollout:
    return Rollout(
        completion_ids=answer.completion.token_ids,
        logprobs=answer.completion.logprobs,
        text=answer.text,
        finish_reason=answer.completion.finish_reason,
        outcome=answer.outcome.result(),
    )
