"""What tokens were spent on: every generated one has one purpose and one fate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, get_args

from posttrain.curriculum import Reason
from posttrain.rl.collect import Batch, Use

Purpose = Literal["whole", "pilot", "continuation", "refill", "exploration", "review", "retry"]
"""Why rollouts were drawn: a group chosen by its score and drawn at once, or its pilot, or the rest
after the pilot; to replace a group without signal; a prompt chosen without looking, to see whether
it is still solved, or still unsolved."""

Fate = Literal["trained", "filler", "discarded"]
"""What rollouts became: trained on with signal, trained on without, or neither."""

PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
FATES: tuple[Fate, ...] = get_args(Fate)

_BY_REASON: Mapping[Reason, Purpose] = {
    "explored": "exploration",
    "reviewed": "review",
    "retried": "retry",
}


def purpose_of(*, reason: Reason, refill: int, num_pilot: int | None, index: int) -> Purpose:
    """The purpose of a group's rollout `index`: the reason first, then the round, then the pilot.

    >>> purpose_of(reason="selected", refill=0, num_pilot=4, index=4)
    'continuation'
    >>> purpose_of(reason="selected", refill=1, num_pilot=4, index=4)
    'refill'
    """
    if reason in _BY_REASON:
        return _BY_REASON[reason]
    if refill:
        return "refill"
    if num_pilot is None:
        return "whole"
    return "pilot" if index < num_pilot else "continuation"


def fate_of(use: Use) -> Fate:
    """Where a group's tokens ended.

    >>> fate_of("filler"), fate_of("stopped")
    ('filler', 'discarded')
    """
    return use if use in ("trained", "filler") else "discarded"


def group_columns(batch: Batch) -> list[dict[str, Any]]:
    """Per group, what the rollout table keeps beside it."""
    return [
        {
            "use": use,
            "refill": refill,
            "reason": proposal.reason,
            "num_pilot": num_pilot(proposal.num_pilot, batch.num_generations),
            # Without what was not looked at, such as the score of an explored prompt.
            "decision": {k: v for k, v in proposal.decision.items() if math.isfinite(v)},
        }
        for proposal, use, refill in zip(
            batch.proposals, batch.uses, batch.refill_rounds, strict=True
        )
    ]


def num_pilot(asked: int | None, num_generations: int) -> int | None:
    """The size of a pilot; None where the group was drawn at once."""
    return None if asked is None or asked >= num_generations else asked


def tokens_spent(batch: Batch) -> dict[str, int]:
    """Generated tokens in all, by purpose and by fate; each of the two sums to the whole."""
    spent: Counter[str] = Counter(dict.fromkeys(("generated", *PURPOSES, *FATES), 0))
    for group, columns in zip(batch.groups, group_columns(batch), strict=True):
        for index, rollout in enumerate(group.rollouts):
            num_tokens = len(rollout.completion_ids)
            spent["generated"] += num_tokens
            spent[fate_of(columns["use"])] += num_tokens
            purpose = purpose_of(
                reason=columns["reason"],
                refill=columns["refill"],
                num_pilot=columns["num_pilot"],
                index=index,
            )
            spent[purpose] += num_tokens
    return dict(spent)
