"""How likely the policy finds reference answers: one scoring pass instead of a group of rollouts.

At temperature 1, where an answer has one accepted form, the probability of answer and end of turn
is the pass rate. What a curriculum makes of it is the curriculum's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from posttrain.models import prompt_ids
from posttrain.records import Message
from posttrain.rewards import find_verifier
from posttrain.rl.sampling import Sampling

MAX_ANSWER_TOKENS = 32
"""End of turn included; a longer reference is one of too many accepted forms to say anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One prompt whose reference answer was scored, or could not be."""

    prompt_id: str
    capability: str
    logprob: float
    """Nats, summed over the answer and its end of turn; NaN where there is nothing to score."""
    num_tokens: int
    """That went through the engine, the prompt's included."""
    num_answer_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LikelihoodProbe:
    """What one step's scoring found and took."""

    scored: list[Scored]
    seconds: float


def score_references(
    prompt_ids_wanted: Sequence[str], sampling: Sampling, *, max_model_len: int
) -> LikelihoodProbe:
    """The log-likelihood of each prompt's reference under the policy, as this step asks it.

    Every process returns the same: each engine scores its share, and all exchange them.
    """
    started = time.monotonic()
    place = sampling.place
    mine = list(enumerate(prompt_ids_wanted))[place.engine :: place.num_engines]
    prefixes: list[list[int]] = []
    answers: list[list[int]] = []
    for _, prompt_id in mine:
        prefix, answer = _in_tokens(prompt_id, sampling)
        prefixes.append(prefix)
        # One place is left free: engines score a sequence by generating one token after it.
        answers.append(answer if len(prefix) + len(answer) < max_model_len else [])
    asked = [i for i, answer in enumerate(answers) if answer]
    logprobs = (
        sampling.engine.score([prefixes[i] for i in asked], [answers[i] for i in asked])
        if asked
        else []
    )
    sums = {i: math.fsum(of_one) for i, of_one in zip(asked, logprobs, strict=True)}
    local = [
        Scored(
            prompt_id=prompt_id,
            capability=sampling.prompts[prompt_id].capability,
            logprob=sums.get(i, math.nan),
            num_tokens=len(prefixes[i]) + len(answers[i]) if i in sums else 0,
            num_answer_tokens=len(answers[i]),
        )
        for i, (_, prompt_id) in enumerate(mine)
    ]
    told = [(n, one) for (n, _), one in zip(mine, local, strict=True)] if place.speaks else []
    gathered = sorted(gather_object(told), key=lambda pair: pair[0])
    return LikelihoodProbe(scored=[one for _, one in gathered], seconds=time.monotonic() - started)


def _in_tokens(prompt_id: str, sampling: Sampling) -> tuple[list[int], list[int]]:
    """The prompt's tokens and its answer's, the latter empty where there is nothing to score."""
    prompt = sampling.asked(prompt_id)
    prefix = prompt_ids(sampling.tokenizer, prompt.messages)
    if not find_verifier(prompt.verifier).is_scorable:
        return prefix, []
    return prefix, answer_ids(sampling.tokenizer, prompt.messages, prompt.reference)


def answer_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: str
) -> list[int]:
    """An answer's tokens and the chat template's end of turn; empty where they are not to be had.

    That is where the answer is empty or too long, or where the template writes it otherwise than
    after the prompt, or ends it with no special token.
    """
    if not answer.strip():
        return []
    before = prompt_ids(tokenizer, list(messages))
    answered = [*messages, Message(role="assistant", content=answer)]
    ids = tokenizer.apply_chat_template(
        cast("list[dict[str, str]]", answered), tokenize=True, return_dict=False
    )
    assert isinstance(ids, list)
    if ids[: len(before)] != before:
        return []
    special = set(tokenizer.all_special_ids)
    rest = cast("list[int]", ids[len(before) :])
    ends = [t for t, token in enumerate(rest) if token in special]
    if not ends or ends[0] == 0 or ends[0] >= MAX_ANSWER_TOKENS:
        return []
    return rest[: ends[0] + 1]
