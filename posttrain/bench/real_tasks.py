"""Procedural tasks that a million parameters can learn: strings of letters, and sums.

Every answer has one accepted form: letters in one case, numbers without leading zeros. So the
probability that a policy writes it and stops is its pass rate at temperature 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from posttrain.records import Message, Prompt, Sample

LETTERS = "abcdefghij"
LEVELS: Mapping[str, Sequence[int]] = {
    "reverse": range(2, 11),
    "sort": range(2, 11),
    "shift": range(2, 11),
    "add": range(1, 6),
}
"""Capability -> its levels: letters in a string, digits of both numbers."""
MAX_ANSWER_TOKENS = 12
"""Ten letters and the end of turn fit."""


def reverse(text: str) -> str:
    """The last letter first.

    >>> reverse("abd")
    'dba'
    """
    return text[::-1]


def sort(text: str) -> str:
    """In the alphabet's order.

    >>> sort("bdab")
    'abbd'
    """
    return "".join(sorted(text))


def shift(text: str) -> str:
    """Every letter's successor, the last one's being the first.

    >>> shift("abj")
    'bca'
    """
    return "".join(LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)] for letter in text)


_ON_LETTERS: Mapping[str, tuple[str, Callable[[str], str]]] = {
    "reverse": ("R", reverse),
    "sort": ("S", sort),
    "shift": ("C", shift),
}


def draw_question(capability: str, level: int, rng: np.random.Generator) -> tuple[str, str]:
    """A question of a level and its answer."""
    if capability == "add":
        low = 10 ** (level - 1) if level > 1 else 0
        first, second = rng.integers(low, 10**level, size=2).tolist()
        return f"{first}+{second}", str(first + second)
    mark, solve = _ON_LETTERS[capability]
    text = "".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=level))
    return mark + text, solve(text)


def prompt_of(capability: str, level: int, question: str, answer: str) -> Prompt:
    """For RL: the level stays out of what a curriculum sees, and is kept in `meta` for tables."""
    return Prompt.make(
        messages=[Message(role="user", content=question)],
        reference=answer,
        verifier="exact",
        capability=capability,
        meta={"level": level},
    )


def sample_of(capability: str, level: int, question: str, answer: str) -> Sample:
    """For SFT."""
    return Sample.make(
        messages=[
            Message(role="user", content=question),
            Message(role="assistant", content=answer),
        ],
        capability=capability,
        meta={"level": level},
    )
