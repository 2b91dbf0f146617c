"""Rollouts: completions sampled from an engine, verified and grouped by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from posttrain.engines.engine import Completion, Engine, SamplingRequest
from posttrain.kill_points import kill_point
from posttrain.models import prompt_ids
from posttrain.progress import progress
from posttrain.records import Outcome, Prompt, Rollout, RolloutGroup
from posttrain.rewards import settle, submit_group

PROMPTS_PER_BATCH = 64


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


def roll_out_in_batches(
    prompts: Sequence[Prompt],
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    request: SamplingRequest,
    *,
    label: str,
    after_batch: str,
) -> list[RolloutGroup]:
    """Do as `roll_out`, in batches with seeds of their own, under a progress bar.

    `after_batch` is the kill point that follows each batch.
    """
    groups: list[RolloutGroup] = []
    with progress(label, total=len(prompts)) as bar:
        for start in range(0, len(prompts), PROMPTS_PER_BATCH):
            batch = prompts[start : start + PROMPTS_PER_BATCH]
            seeded = replace(request, seed=request.seed + start)
            groups += roll_out(batch, engine, tokenizer, seeded)
            kill_point(after_batch)
            bar.advance(len(batch))
    return groups


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
