"""Generating groups: engines shared by training processes, system instructions, seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from posttrain.engines import Completion, Engine, SamplingRequest
from posttrain.engines.rollouts import roll_out
from posttrain.models import prompt_ids
from posttrain.records import Message, Prompt, RolloutGroup, content_hash, with_system

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class EnginePlace:
    """Which engine a training process belongs to: consecutive ranks share one.

    >>> engine_place(rank=3, world_size=4, tensor_parallel_size=2)
    EnginePlace(engine=1, num_engines=2, is_engine_leader=False)
    """

    engine: int
    """Index of its engine."""
    num_engines: int
    is_engine_leader: bool
    """True if it hands over what its engine generated."""

    def share(self, items: Sequence[Item]) -> list[tuple[int, Item]]:
        """Return its engine's part of `items`, each with its number."""
        return list(enumerate(items))[self.engine :: self.num_engines]

    def gather(self, found: Sequence[tuple[int, Item]]) -> list[Item]:
        """Return what all engines found, in the order of the numbers; the same in all processes."""
        gathered = gather_object(list(found) if self.is_engine_leader else [])
        return [item for _, item in sorted(gathered, key=lambda pair: pair[0])]


ALONE = EnginePlace(engine=0, num_engines=1, is_engine_leader=True)


def engine_place(*, rank: int, world_size: int, tensor_parallel_size: int) -> EnginePlace:
    """Return a process's place; the processes must divide into engines, as a recipe's do."""
    assert world_size % tensor_parallel_size == 0
    return EnginePlace(
        engine=rank // tensor_parallel_size,
        num_engines=world_size // tensor_parallel_size,
        is_engine_leader=rank % tensor_parallel_size == 0,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Sampling parameters of one step, the same in all its rounds."""

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
        """Return the system instruction that a prompt gets at this step."""
        if not self.systems:
            return None
        drawn = content_hash(self.request.seed, "system", self.step, prompt_id)
        return self.systems[int(drawn, 16) % len(self.systems)]

    def prompt(self, prompt_id: str) -> Prompt:
        """Return the prompt as the policy sees it at this step, system instruction included."""
        prompt = self.prompts[prompt_id]
        messages = with_system(prompt.messages, self.system_of(prompt_id))
        return dataclasses.replace(prompt, messages=messages)

    def seed(self, stream: str) -> int:
        """Return the seed of one call of this process's engine."""
        drawn = content_hash(self.request.seed, self.step, stream, self.place.engine)
        return int(drawn[:8], 16) >> 1


def draw_groups(
    wanted: Sequence[tuple[str, int]], sampling: Sampling, *, stream: str
) -> list[RolloutGroup]:
    """Generate as many rollouts of each prompt as asked for, in order; one call of each engine.

    Every process returns the same groups: each engine generates its share, called by all of its
    processes alike, and all exchange them. Seeds depend on the request's, step, `stream` and engine
    only, so a resumed run repeats the same draws.
    """
    if not wanted:
        return []
    # An engine takes one size per call: the largest that divides all of them, several times over.
    size = math.gcd(*(num for _, num in wanted))
    parts = [prompt_id for prompt_id, num in wanted for _ in range(num // size)]
    mine = sampling.place.share(parts)
    request = dataclasses.replace(
        sampling.request, num_generations=size, seed=sampling.seed(stream)
    )
    local = (
        roll_out(
            [sampling.prompt(prompt_id) for _, prompt_id in mine],
            sampling.engine,
            sampling.tokenizer,
            request,
            step=sampling.step,
        )
        if mine
        else []
    )
    drawn = iter(sampling.place.gather([(n, g) for (n, _), g in zip(mine, local, strict=True)]))
    return [
        dataclasses.replace(
            joined([next(drawn) for _ in range(num // size)]),
            system=sampling.system_of(prompt_id),
        )
        for prompt_id, num in wanted
    ]


def draw_completions(
    conversations_N: Sequence[list[Message]],
    sampling: Sampling,
    *,
    num: int,
    max_tokens: int,
    stream: str,
) -> list[list[Completion]]:
    """Generate `num` completions of each conversation, in order, unverified; see `draw_groups`."""
    if not conversations_N:
        return []
    mine = sampling.place.share(conversations_N)
    request = dataclasses.replace(
        sampling.request,
        num_generations=num,
        max_tokens=max_tokens,
        seed=sampling.seed(stream),
    )
    ids = [prompt_ids(sampling.tokenizer, messages) for _, messages in mine]
    local = sampling.engine.generate(ids, request) if ids else []
    return sampling.place.gather([(n, one) for (n, _), one in zip(mine, local, strict=True)])


def joined(parts: Sequence[RolloutGroup]) -> RolloutGroup:
    """Return the parts of one prompt's group as one, in order."""
    rollouts = tuple(rollout for part in parts for rollout in part.rollouts)
    return dataclasses.replace(parts[0], rollouts=rollouts)
