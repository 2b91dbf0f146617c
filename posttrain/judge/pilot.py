"""Measuring how hard some samples really are, by letting the model try them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from posttrain.data import prompt_of
from posttrain.engines import Engine, SamplingRequest
from posttrain.engines.rollouts import roll_out
from posttrain.engines.room import tokens_without_room
from posttrain.faults import fault_point
from posttrain.progress import progress
from posttrain.recipe.schema import Pilot
from posttrain.records import Prompt, RolloutGroup, Sample

_PROMPTS_PER_BATCH = 64


def run_pilot(
    samples: Sequence[Sample],
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    spec: Pilot,
    *,
    max_model_len: int,
    seed: int,
) -> list[RolloutGroup]:
    """Scored attempts of the engine's model at up to `num_samples` samples that have a verifier.

    Samples whose question fills `max_model_len` tokens cannot be attempted and are not chosen.
    Capabilities get equal places as far as their samples reach. In the groups, prompt_id is the
    sample's id and step is 0.
    """
    chosen = pilot_samples(
        [
            sample
            for sample in samples
            if sample.verifier is not None
            and tokens_without_room(_task(sample).messages, tokenizer, max_model_len) is None
        ],
        spec.num_samples,
        seed=seed,
    )
    groups: list[RolloutGroup] = []
    with progress("judge pilot", total=len(chosen)) as bar:
        for start in range(0, len(chosen), _PROMPTS_PER_BATCH):
            batch = chosen[start : start + _PROMPTS_PER_BATCH]
            request = SamplingRequest(
                num_generations=spec.num_generations, max_tokens=spec.max_tokens, seed=seed + start
            )
            tried = roll_out([_task(sample) for sample in batch], engine, tokenizer, request)
            fault_point("judge.after_pilot_generate")
            groups += [
                dataclasses.replace(group, prompt_id=sample.sample_id)
                for sample, group in zip(batch, tried, strict=True)
            ]
            bar.advance(len(batch))
    return groups


def pilot_samples(samples: Sequence[Sample], num_samples: int, *, seed: int) -> list[Sample]:
    """A random choice among the samples that can be verified, capabilities taking turns."""
    by_capability: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.verifier is not None:
            by_capability.setdefault(sample.capability, []).append(sample)
    rng = random.Random(seed)
    for _, of_one in sorted(by_capability.items()):
        rng.shuffle(of_one)
    in_turn = [
        (turn, capability, sample)
        for capability, of_one in by_capability.items()
        for turn, sample in enumerate(of_one)
    ]
    in_turn.sort(key=lambda entry: entry[:2])
    return [sample for _, _, sample in in_turn[:num_samples]]


def _task(sample: Sample) -> Prompt:
    prompt = prompt_of(sample)
    assert prompt is not None, "the pilot takes only samples with a verifier"
    return prompt
