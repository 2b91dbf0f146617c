"""Log-likelihood of reference answers: one scoring pass instead of a group of rollouts.

At temperature 1, for an answer with one accepted form, the probability of answer and end of turn is
the pass rate. The curriculum decides what to make of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase

from posttrain.models import prompt_ids
from posttrain.records import Message
from posttrain.rewards import find_verifier
from posttrain.rl.sampling import Sampling

MAX_ANSWER_TOKENS = 32
"""Longest answer that is scored, end of turn included; longer ones have too many accepted forms."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredReference:
    """One prompt's reference answer, scored if it could be."""

    prompt_id: str
    capability: str
    logprob: float
    """Nats, summed over the answer and its end of turn; NaN without an answer to score."""
    num_tokens: int
    """Tokens that went through the engine, the prompt's included."""
    num_answer_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredReferences:
    """One step's scored references, and the seconds they took."""

    scored: list[ScoredReference]
    seconds: float

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens that went through the engine."""
        return sum(one.num_tokens for one in self.scored)

    @property
    def logprobs(self) -> dict[str, float | None]:
        """Return log-likelihoods by prompt_id, None without an answer to score."""
        return {
            one.prompt_id: None if math.isnan(one.logprob) else one.logprob for one in self.scored
        }


def score_references(
    wanted: Sequence[str], sampling: Sampling, *, max_model_len: int
) -> ScoredReferences:
    """Score the reference of each prompt id under the policy, with this step's system instruction.

    Every process returns the same: each engine scores its share, and all exchange them.
    """
    started = time.monotonic()
    mine = sampling.place.share(wanted)
    prefixes: list[list[int]] = []
    answers: list[list[int]] = []
    for _, prompt_id in mine:
        prefix, answer = _tokens(prompt_id, sampling)
        prefixes.append(prefix)
        # One place is left free: engines score a sequence by generating one token after it.
        answers.append(answer if len(prefix) + len(answer) < max_model_len else [])
    scorable = [i for i, answer in enumerate(answers) if answer]
    logprobs = (
        sampling.engine.score([prefixes[i] for i in scorable], [answers[i] for i in scorable])
        if scorable
        else []
    )
    sums = {i: math.fsum(of_one) for i, of_one in zip(scorable, logprobs, strict=True)}
    local = [
        (
            number,
            ScoredReference(
                prompt_id=prompt_id,
                capability=sampling.prompts[prompt_id].capability,
                logprob=sums.get(i, math.nan),
                num_tokens=len(prefixes[i]) + len(answers[i]) if i in sums else 0,
                num_answer_tokens=len(answers[i]),
            ),
        )
        for i, (number, prompt_id) in enumerate(mine)
    ]
    scored = sampling.place.gather(local)
    return ScoredReferences(scored=scored, seconds=time.monotonic() - started)


def _tokens(prompt_id: str, sampling: Sampling) -> tuple[list[int], list[int]]:
    """Return the prompt's tokens and its answer's, [] without an answer to score."""
    prompt = sampling.prompt(prompt_id)
    prefix = prompt_ids(sampling.tokenizer, prompt.messages)
    if not find_verifier(prompt.verifier).is_scorable:
        return prefix, []
    return prefix, answer_ids(sampling.tokenizer, prompt.messages, prompt.reference)


def answer_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: str
) -> list[int]:
    """Return an answer's tokens and the chat template's end of turn; [] if there are none.

    There are none if the answer is empty or too long, or if the template does not write it right
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
