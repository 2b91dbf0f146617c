"""Rows that are longer than a trainer takes: counted, and left out whole before training.

TRL would cut them at `max_length`, and with the end of an answer goes its end token; where the
prompt alone is as long it drops the row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from transformers import PreTrainedTokenizerBase

from posttrain.errors import RecipeError
from posttrain.progress import note
from posttrain.records import Message

TOO_LONG_FILE = "too_long.parquet"
"""The table of the rows that a stage left out."""
_AT_ONCE = 1024

Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True, slots=True)
class TooLong:
    """A row that was left out.

    >>> TooLong(row_id="s1", position=3, num_tokens=1500, reason="1500 tokens, ...").num_tokens
    1500
    """

    row_id: str
    """The sample's or the prompt's id."""
    position: int
    """0-based, among the rows that the stage was given."""
    num_tokens: int
    """Of its longest conversation, the end included."""
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
    """The rows all of whose conversations fit into `max_length` tokens, and those that do not.

    None is no limit: nothing is counted. `key` names the limit in the recipe. Raises RecipeError
    where no row fits.
    """
    if max_length is None:
        return list(rows), []
    kept: list[Row] = []
    left: list[TooLong] = []
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        of_each = [conversations(row) for row in some]
        counted = iter(count_tokens(tokenizer, [turns for row in of_each for turns in row]))
        for position, (row, its) in enumerate(zip(some, of_each, strict=True), start=start):
            num_tokens = max(next(counted) for _ in its)
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
                f"all {len(rows)} rows are longer than {key}, which is {max_length}: "
                f"they have {shortest} to {longest} tokens with the chat template",
                hint=f"set {key}: {longest} to train on all of them",
            )
        note(
            f"{len(left)} of {len(rows)} rows are longer than {key}, which is {max_length}, and "
            f"are left out: see {TOO_LONG_FILE}; raise it to keep them (the longest has {longest})"
        )
    return kept, left


def count_tokens(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[Message]]
) -> list[int]:
    """How many tokens each conversation has with the chat template, as TRL tokenizes it."""
    # One call for all: a fast tokenizer shares them among its threads.
    ids_C_T = tokenizer.apply_chat_template(
        cast(list[list[dict[str, str]]], list(conversations)), tokenize=True, return_dict=False
    )
    return [len(ids) for ids in cast(list[list[int]], ids_C_T)]
