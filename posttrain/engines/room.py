"""Whether a prompt leaves the engine room for an answer."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from posttrain.errors import RecipeError
from posttrain.models import prompt_ids
from posttrain.records import Message, Prompt, with_system

# More than a chat template adds around a message; a token has a byte or more.
_BYTES_PER_MESSAGE = 256


def tokens_without_room(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, max_model_len: int
) -> int | None:
    """How many tokens a conversation has, where that fills `max_model_len`; None where it fits.

    Only one of so many bytes is tokenized.
    """
    if sum(len(m["content"].encode()) + _BYTES_PER_MESSAGE for m in messages) < max_model_len:
        return None
    num = len(prompt_ids(tokenizer, list(messages)))
    return num if num >= max_model_len else None


def check_room(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_model_len: int,
    systems: Sequence[str | None] = (),
) -> None:
    """Raise RecipeError where a prompt, under any of `systems`, leaves no room for an answer."""
    found: list[tuple[int, int]] = []
    for index, prompt in enumerate(prompts):
        for system in systems or (None,):
            asked = with_system(prompt.messages, system)
            if (num := tokens_without_room(asked, tokenizer, max_model_len)) is not None:
                found.append((num, index))
    if not found:
        return
    num, index = max(found)
    longest = prompts[index]
    where = " line ".join(
        str(longest.meta[key]) for key in ("source", "line") if key in longest.meta
    )
    raise RecipeError(
        f"{len({index for _, index in found}):,} of {len(prompts):,} prompts leave no room in "
        f"engine.max_model_len ({max_model_len:,}) for an answer: {where or longest.prompt_id} has "
        f"{num:,} tokens",
        hint=f"set engine.max_model_len to {num:,} and what an answer may have, or take such "
        "prompts out of the data",
    )
