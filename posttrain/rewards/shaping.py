"""Terms added to the reward of answers that passed, and of no others.

Passing alone decides what a group teaches: a group whose answers all passed or all failed gets no
shaping, since a difference in length would otherwise become its whole gradient.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.records import Rollout, RolloutGroup
from posttrain.spec import Share, Spec, wrong

Weight = Annotated[float, Field(gt=0.0, le=0.5)]


class LengthTerm(Spec):
    """Takes from the reward of a passed answer that is too long."""

    weight: Weight = 0.1
    """Amount taken at `full_tokens` and beyond."""
    free_tokens: int = Field(ge=0)
    """Length up to which nothing is taken."""
    full_tokens: int = Field(ge=1)
    """Length from which the whole weight is taken; in between a part of it."""

    @model_validator(mode="after")
    def _ramp(self) -> LengthTerm:
        if self.free_tokens >= self.full_tokens:
            raise wrong(f"must be below full_tokens ({self.full_tokens})", "free_tokens")
        return self


class FormatTerm(Spec):
    """Adds to the reward of a passed answer in which a pattern is found."""

    weight: Weight = 0.1
    """Amount added where the pattern is found."""
    pattern: str = Field(min_length=1)
    """A Python regular expression, searched for in the answer."""

    @model_validator(mode="after")
    def _compiles(self) -> FormatTerm:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise wrong(f"is no regular expression: {error}", "pattern") from error
        return self


Script = Literal[
    "latin", "cyrillic", "greek", "arabic", "hebrew", "devanagari", "thai", "hangul", "hiragana",
    "katakana", "cjk",
]  # fmt: skip


class LanguageTerm(Spec):
    """Adds to the reward of a passed answer that is written in one script."""

    weight: Weight = 0.1
    """Amount added where enough of the letters belong to the script."""
    script: Script
    """Script by its Unicode name."""
    min_share: Share = 0.9
    """Share of the letters that must belong to the script."""


class Shaping(Spec):
    """Terms added to the reward of answers that passed; they never decide whether one passes."""

    length: LengthTerm | None = None
    """Penalty for long answers."""
    format: FormatTerm | None = None
    """Bonus for a pattern."""
    language: LanguageTerm | None = None
    """Bonus for a script."""

    @model_validator(mode="after")
    def _stays_small(self) -> Shaping:
        terms = (self.length, self.format, self.language)
        if sum(term.weight for term in terms if term is not None) > 0.5:
            raise wrong("the weights must sum to 0.5 at most, so that passing counts most")
        return self


def shaped_rewards(group: RolloutGroup, shaping: Shaping | None) -> list[float | None]:
    """Return (G,) rewards: 0 for failed, 1 plus its terms for passed, None for undecided.

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
    """Return an answer's terms by name: length in [-weight, 0], format and language 0 or weight."""
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
    """Return the share of a text's letters that belong to a script; 1 where it has no letters.

    >>> script_share("abc где", "latin")
    0.5
    """
    letters = [char for char in text if char.isalpha()]
    if not letters:
        return 1.0
    wanted = script.upper()
    return sum(unicodedata.name(char, "").startswith(wanted) for char in letters) / len(letters)


def mean_terms(groups: list[RolloutGroup], shaping: Shaping) -> Mapping[str, float]:
    """Return the mean of each term over passed answers of groups with signal; empty without any."""
    found = [
        shaping_terms(rollout, shaping)
        for group in groups
        if group.has_signal
        for rollout in group.rollouts
        if rollout.outcome.passed
    ]
    return {name: sum(t[name] for t in found) / len(found) for name in found[0]} if found else {}
