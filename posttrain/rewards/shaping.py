"""What is added to the reward of answers that passed, and of no others.

Passing alone decides what a group teaches: a group whose answers all passed or all failed gets no
shaping either, since a difference in length would otherwise become its whole gradient.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from posttrain.recipe.deciding import Shaping
from posttrain.records import Rollout, RolloutGroup


def shaped_rewards(group: RolloutGroup, shaping: Shaping | None) -> list[float | None]:
    """(G,) rewards: 0 for failed, 1 plus its terms for passed, None for undecided.

    The weights sum to at most a half, so an answer that passed is worth more than any that failed.
    """
    plain = [None if r.outcome.passed is None else float(r.outcome.passed) for r in group.rollouts]
    if shaping is None or not group.has_signal:
        return plain
    return [
        1.0 + sum(shaping_terms(rollout, shaping).values()) if reward == 1.0 else reward
        for rollout, reward in zip(group.rollouts, plain, strict=True)
    ]


def shaping_terms(rollout: Rollout, shaping: Shaping) -> dict[str, float]:
    """Each term of an answer by name: length in [-weight, 0], format and language 0 or weight."""
    terms: dict[str, float] = {}
    if (length := shaping.length) is not None:
        over = len(rollout.completion_ids) - length.free_tokens
        share = over / (length.full_tokens - length.free_tokens)
        terms["length"] = -length.weight * min(1.0, max(0.0, share))
    if (form := shaping.format) is not None:
        terms["format"] = form.weight * (re.search(form.pattern, rollout.text) is not None)
    if (language := shaping.language) is not None:
        written = script_share(rollout.text, language.script)
        terms["language"] = language.weight * (written >= language.min_share)
    return terms


def script_share(text: str, script: str) -> float:
    """The share of a text's letters that belong to a script; 1 where it has no letters.

    >>> script_share("abc где", "latin")
    0.5
    """
    letters = [char for char in text if char.isalpha()]
    if not letters:
        return 1.0
    wanted = script.upper()
    return sum(unicodedata.name(char, "").startswith(wanted) for char in letters) / len(letters)


def mean_terms(groups: list[RolloutGroup], shaping: Shaping) -> Mapping[str, float]:
    """Mean of each term over the passed answers of groups with signal; empty without any."""
    found = [
        shaping_terms(rollout, shaping)
        for group in groups
        if group.has_signal
        for rollout in group.rollouts
        if rollout.outcome.passed
    ]
    return {name: sum(t[name] for t in found) / len(found) for name in found[0]} if found else {}
