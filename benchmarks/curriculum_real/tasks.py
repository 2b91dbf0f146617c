"""Procedural tasks on strings of letters, harder with length, that a million parameters can learn.

Every answer has one accepted form, so the probability that a policy writes it and stops is its pass
rate at temperature 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from posttrain.records import Message, Prompt, Sample

LETTERS = "abcdefghij"
LEVELS = range(2, 13)
"""Numbers of letters in a string."""
MAX_ANSWER_TOKENS = 14
"""Twelve letters, the end of turn, and one token too many."""


def reverse(text: str) -> str:
    """Reverse the letters.

    >>> reverse("abd")
    'dba'
    """
    return text[::-1]


def sort(text: str) -> str:
    """Sort the letters.

    >>> sort("bdab")
    'abbd'
    """
    return "".join(sorted(text))


def shift(text: str) -> str:
    """Replace every letter by the next one, and the last by the first.

    >>> shift("abj")
    'bca'
    """
    return "".join(LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)] for letter in text)


_TASKS: Mapping[str, tuple[str, Callable[[str], str]]] = {
    "reverse": ("R", reverse),
    "sort": ("S", sort),
    "shift": ("C", shift),
}
"""Capability -> the mark that asks for it, and its function."""
CAPABILITIES = tuple(_TASKS)
MARKS = tuple(mark for mark, _ in _TASKS.values())


def draw_question(capability: str, level: int, rng: np.random.Generator) -> tuple[str, str]:
    """Draw a question of a level; return it with its answer."""
    mark, solve = _TASKS[capability]
    text = "".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=level))
    return mark + text, solve(text)


def draw_prompt(capability: str, level: int, rng: np.random.Generator) -> Prompt:
    """Draw an RL prompt; its level is only in `meta`, where no curriculum looks."""
    question, answer = draw_question(capability, level, rng)
    return Prompt.make(
        messages=[Message(role="user", content=question)],
        reference=answer,
        verifier="exact",
        capability=capability,
        meta={"level": level},
    )


def draw_sample(capability: str, level: int, rng: np.random.Generator) -> Sample:
    """Draw an SFT sample."""
    question, answer = draw_question(capability, level, rng)
    return Sample.make(
        messages=[
            Message(role="user", content=question),
            Message(role="assistant", content=answer),
        ],
        capability=capability,
        meta={"level": level},
    )
