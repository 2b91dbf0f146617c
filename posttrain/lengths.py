"""Limits of length: training rows above `max_length`, prompts that fill `engine.max_model_len`.

TRL would truncate rows at `max_length`, so that an answer loses its end token, and would drop rows
whose prompt alone is as long. Here they are counted and left out whole before training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from transformers import PreTrainedTokenizerBase

from posttrain.errors import RecipeError
from posttrain.models import prompt_ids
from posttrain.progress import note
from posttrain.records import Message, Prompt, with_system

TOO_LONG_FILE = "too_long.parquet"
"""Table of the rows that a stage left out."""
BATCH_SIZE = 1024
TEMPLATE_BYTES = 256
"""More bytes than a chat template adds around a message."""

Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True, slots=True)
class TooLong:
    """A row that was left out of training.

    >>> TooLong(row_id="s1", position=3, num_tokens=1500, reason="1500 tokens, ...").num_tokens
    1500
    """

    row_id: str
    """Id of the sample or prompt."""
    position: int
    """Index among the rows that the stage was given."""
    num_tokens: int
    """Tokens of its longest conversation, end token included."""
    reason: str


def leave_out_too_long(
    rows: Sequence[Row],
    conversations: Callable[[Row], Sequence[list[Message]]],
    *,
    row_id: Callable[[Row], str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    key: str,
) -> tuple[list[Row], list[TooLong]]:
    """Split rows into those whose conversations all fit into `max_length` tokens, and the others.

    None is no limit: nothing is counted. `key` is the limit's key in the recipe. Raises RecipeError
    if no row fits.
    """
    if max_length is None:
        return list(rows), []
    kept: list[Row] = []
    left: list[TooLong] = []
    for start in range(0, len(rows), BATCH_SIZE):
        batch = rows[start : start + BATCH_SIZE]
        conversations_B = [conversations(row) for row in batch]
        counts = iter(count_tokens(tokenizer, [turns for row in conversations_B for turns in row]))
        for position, (row, own) in enumerate(zip(batch, conversations_B, strict=True), start):
            num_tokens = max(next(counts) for _ in own)
            if num_tokens <= max_length:
                kept.append(row)
                continue
            left.append(
                TooLong(
                    row_id=row_id(row),
                    position=position,
                    num_tokens=num_tokens,
                    reason=f"{num_tokens} tokens with the chat template, {key} is {max_length}",
                )
            )
    if left:
        longest = max(row.num_tokens for row in left)
        if not kept:
            shortest = min(row.num_tokens for row in left)
            raise RecipeError(
                f"all {len(rows)} rows are longer than {key} ({max_length}): "
                f"they have {shortest} to {longest} tokens with the chat template",
                hint=f"set {key}: {longest} to train on all of them",
            )
        note(
            f"{len(left)} of {len(rows)} rows are longer than {key} ({max_length}) and are left "
            f"out: see {TOO_LONG_FILE}. To keep them all, set {key}: {longest}"
        )
    return kept, left


def count_tokens(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[Message]]
) -> list[int]:
    """Count the tokens of each conversation with the chat template, as TRL tokenizes it."""
    # One call for all of them: a fast tokenizer splits it among its threads.
    ids_C_T = tokenizer.apply_chat_template(
        cast(list[list[dict[str, str]]], list(conversations)), tokenize=True, return_dict=False
    )
    return [len(ids) for ids in cast(list[list[int]], ids_C_T)]


def tokens_if_too_long(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, max_model_len: int
) -> int | None:
    """Count a prompt's tokens if they leave no room in `max_model_len`; None if they do.

    A token has a byte or more, so a prompt with fewer bytes than that is not tokenized.
    """
    if sum(len(m["content"].encode()) + TEMPLATE_BYTES for m in messages) < max_model_len:
        return None
    num = len(prompt_ids(tokenizer, list(messages)))
    return num if num >= max_model_len else None


def check_prompt_lengths(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_model_len: int,
    systems: Sequence[str | None] = (),
) -> None:
    """Raise RecipeError if a prompt, under any of `systems`, leaves no room for a completion."""
    found: list[tuple[int, int]] = []
    for index, prompt in enumerate(prompts):
        for system in systems or (None,):
            messages = with_system(prompt.messages, system)
            if (num := tokens_if_too_long(messages, tokenizer, max_model_len)) is not None:
                found.append((num, index))
    if not found:
        return
    num, index = max(found)
    longest = prompts[index]
    where = " line ".join(
        str(longest.meta[key]) for key in ("source", "line") if key in longest.meta
    )
    raise RecipeError(
        f"{len({index for _, index in found}):,} of {len(prompts):,} prompts leave no room for an "
        f"answer within engine.max_model_len ({max_model_len:,}): {where or longest.prompt_id} has "
        f"{num:,} tokens",
        hint=f"set engine.max_model_len to {num:,} plus the longest answer, or remove such prompts "
        "from the data",
    )
