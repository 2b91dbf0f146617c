"""Generating groups on the engines at hand: sizes that differ, system instructions, seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from posttrain.engines import Completion, Engine, SamplingRequest
from posttrain.engines.rollouts import roll_out
from posttrain.models import prompt_ids
from posttrain.records import Message, Prompt, RolloutGroup, content_hash, with_system
from posttrain.rl.places import ALONE, EnginePlace


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the groups of one step are generated, the same in all its rounds."""

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    request: SamplingRequest
    """Its num_generations is the size of a whole group."""
    prompts: Mapping[str, Prompt]
    step: int
    systems: Sequence[str | None] = ()
    """System instructions, one of which is drawn per step and prompt; None = the prompt's own."""
    place: EnginePlace = ALONE

    def system_of(self, prompt_id: str) -> str | None:
        """The system instruction that a prompt gets at this step."""
        if not self.systems:
            return None
        drawn = content_hash(self.request.seed, "system", self.step, prompt_id)
        return self.systems[int(drawn, 16) % len(self.systems)]

    def asked(self, prompt_id: str) -> Prompt:
        """The prompt as the policy sees it at this step."""
        prompt = self.prompts[prompt_id]
        messages = with_system(prompt.messages, self.system_of(prompt_id))
        return dataclasses.replace(prompt, messages=messages)


def draw_groups(
    wanted: Sequence[tuple[str, int]], sampling: Sampling, *, stream: str
) -> list[RolloutGroup]:
    """As many rollouts of each prompt as asked for, in order; one call of each engine.

    Every process returns the same groups: each engine generates its share, asked by all of its
    processes alike, and all exchange them. Seeds depend on the request's, step, `stream` and engine
    only, so a resumed run repeats the same draws.
    """
    if not wanted:
        return []
    place = sampling.place
    # An engine takes one size per call: the largest that divides all of them, several times over.
    size = math.gcd(*(num for _, num in wanted))
    parts = [(n, i) for n, (i, num) in enumerate(wanted) for _ in range(num // size)]
    mine = list(enumerate(parts))[place.engine :: place.num_engines]
    request = dataclasses.replace(
        sampling.request, num_generations=size, seed=_seed(sampling, stream)
    )
    local = (
        roll_out(
            [sampling.asked(i) for _, (_, i) in mine],
            sampling.engine,
            sampling.tokenizer,
            request,
            step=sampling.step,
        )
        if mine
        else []
    )
    told = [(n, g) for (n, _), g in zip(mine, local, strict=True)] if place.speaks else []
    gathered = dict(gather_object(told))
    by_prompt: list[list[RolloutGroup]] = [[] for _ in wanted]
    for number, (n, _) in enumerate(parts):
        by_prompt[n].append(gathered[number])
    return [
        dataclasses.replace(joined(of_one), system=sampling.system_of(i))
        for of_one, (i, _) in zip(by_prompt, wanted, strict=True)
    ]


def draw_completions(
    conversations_N: Sequence[list[Message]],
    sampling: Sampling,
    *,
    num: int,
    max_tokens: int,
    stream: str,
) -> list[list[Completion]]:
    """`num` completions of each conversation, in order, verified by nobody; as in `draw_groups`."""
    if not conversations_N:
        return []
    place = sampling.place
    mine = list(enumerate(conversations_N))[place.engine :: place.num_engines]
    request = dataclasses.replace(
        sampling.request,
        num_generations=num,
        max_tokens=max_tokens,
        seed=_seed(sampling, stream),
    )
    ids = [prompt_ids(sampling.tokenizer, messages) for _, messages in mine]
    local = sampling.engine.generate(ids, request) if ids else []
    told = [(n, one) for (n, _), one in zip(mine, local, strict=True)] if place.speaks else []
    gathered = dict(gather_object(told))
    return [gathered[n] for n in range(len(conversations_N))]


def _seed(sampling: Sampling, stream: str) -> int:
    drawn = content_hash(sampling.request.seed, sampling.step, stream, sampling.place.engine)
    return int(drawn[:8], 16) >> 1


def joined(parts: Sequence[RolloutGroup]) -> RolloutGroup:
    """The parts of one prompt's group as one, in order."""
    rollouts = tuple(rollout for part in parts for rollout in part.rollouts)
    return dataclasses.replace(parts[0], rollouts=rollouts)
