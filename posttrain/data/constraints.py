"""Endless writing tasks with constraints, each with an answer that was verified to meet them.

Kinds, their values and the checks are IFEval's. Conflicts follow lm-eval's table and, beyond it,
the way in which the answer is built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from posttrain.records import Prompt
from posttrain.rewards import verify
from posttrain.rewards.instructions import constraint_kinds

MAX_LEVEL = 4
"""Largest number of constraints in one prompt."""
_ATTEMPTS = 40

_NOUNS = (
    "river", "garden", "market", "train", "teacher", "kitchen", "mountain", "library", "bridge",
    "farmer", "window", "winter", "village", "harbor", "painter", "forest", "bakery", "concert",
)  # fmt: skip
_QUALITIES = (
    "quiet", "bright", "old", "small", "friendly", "busy", "gentle", "famous", "simple", "warm",
    "strange", "lovely",
)  # fmt: skip
_PLACES = (
    "near the lake", "in the city", "by the sea", "behind the school", "in the valley",
    "on the hill", "at the station", "in my town",
)  # fmt: skip
_SENTENCES = (
    "The {noun} {place} is {quality} and {other}.",
    "People often talk about the {noun} because it is so {quality}.",
    "Every morning we walk past the {noun} {place} and it feels {quality}.",
    "My friends think that the {noun} is {quality} but I find it {other}.",
    "Last year the {noun} became {quality} and everyone was happy about it.",
    "There is nothing like the {quality} {noun} {place} in the evening.",
    "Nobody knows why the {noun} {place} was once {quality}.",
)
_MORE = (
    "I like this {noun} very much.",
    "Have you seen the {noun} before?",
    "We will come back to the {noun} soon.",
)
_ENDINGS = (
    "That is all.", "Is there anything else?", "Thank you for reading.", "The end.",
    "I hope this helps.", "See you soon.",
)  # fmt: skip
_OPENINGS = (
    "Write {amount} about a {noun}.",
    "Write {amount} on the topic of a {noun}.",
    "Tell me something about a {noun} in {amount}.",
)
_AMOUNTS = ("a short text", "a few sentences", "a short description", "a small story")
_SAYING_NOTHING = ("x", "Yes.", "I do not know")


@dataclass(frozen=True, kw_only=True, slots=True)
class Writing:
    """A task with an answer that meets it."""

    question: str
    answer: str
    reference: str
    """Constraints as JSON text in IFEval's form."""


@dataclass(kw_only=True, slots=True)
class _Draft:
    """A task and its answer while they are built together."""

    rng: Random
    noun: str
    text: str
    asked: list[str] = field(default_factory=list[str])
    names: list[str] = field(default_factory=list[str])
    kwargs: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def ask(self, *wordings: str, **kwargs: Any) -> None:
        """Ask for the constraint in one of these wordings, with its arguments for the checker."""
        self.kwargs.append(kwargs)
        self.asked.append(self.rng.choice(wordings))


def make_writing(rng: Random, level: int) -> Writing:
    """Make a task with `level` constraints, determined by the state of `rng`.

    Raises SetupError if lm-eval's checkers are not installed, ValueError for unknown levels.
    """
    if not 1 <= level <= MAX_LEVEL:
        raise ValueError(f"constraints has the levels 1 to {MAX_LEVEL}, not {level}")
    kinds = constraint_kinds()
    for _ in range(_ATTEMPTS):
        names = _choose(rng, level, kinds)
        if len(names) < level:
            continue
        draft = _draft(rng, names)
        writing = Writing(
            question=" ".join([rng.choice(_OPENINGS).format(
                amount=rng.choice(_AMOUNTS), noun=draft.noun), *draft.asked]),
            answer=draft.text,
            reference=json.dumps({"instruction_id_list": draft.names, "kwargs": draft.kwargs}),
        )  # fmt: skip
        if _meets(writing):
            return writing
    raise AssertionError(f"no task of level {level} in {_ATTEMPTS} attempts")


def _choose(rng: Random, level: int, kinds: Mapping[str, Any]) -> list[str]:
    """Choose constraints without conflicts, in the order in which they shape an answer."""
    chosen: list[str] = []
    for name in rng.sample(list(_STEPS), len(_STEPS)):
        apart = {*kinds[name]["conflicts"], *_ALSO_APART.get(name, ())}
        if not apart & set(chosen) and not any(name in _ALSO_APART.get(c, ()) for c in chosen):
            chosen.append(name)
        if len(chosen) == level:
            break
    return sorted(chosen, key=list(_STEPS).index)


def _draft(rng: Random, names: list[str]) -> _Draft:
    noun = rng.choice(_NOUNS)
    sentences = [
        template.format(
            noun=noun,
            quality=rng.choice(_QUALITIES),
            other=rng.choice(_QUALITIES),
            place=rng.choice(_PLACES),
        )
        for template in rng.sample(_SENTENCES, rng.randint(2, 3))
    ]
    draft = _Draft(rng=rng, noun=noun, text=" ".join(sentences))
    for name in names:
        draft.names.append(name)
        _STEPS[name](draft)
    return draft


def _meets(writing: Writing) -> bool:
    """Return True if the answer passes, and answers that say nothing do not.

    A task that one word passes, such as one without commas, would teach to answer with one word.
    """
    prompt = Prompt.make(
        messages=[{"role": "user", "content": writing.question}],
        reference=writing.reference,
        verifier="instructions",
        capability="constraints",
    )
    if any(verify(prompt, text).passed is not False for text in _SAYING_NOTHING):
        return False
    return verify(prompt, writing.answer).passed is True


# ---- the steps: each changes the answer and asks for a constraint


def _existence(draft: _Draft) -> None:
    words = draft.rng.sample(sorted({*_QUALITIES, *_NOUNS} - {draft.noun}), 2)
    draft.text += f" The {words[0]} and the {words[1]} are part of it."
    draft.ask(
        f'Use the words "{words[0]}" and "{words[1]}".',
        f'Include the keywords "{words[0]}" and "{words[1]}" in your answer.',
        keywords=words,
    )


def _frequency(draft: _Draft) -> None:
    number = draft.rng.randint(2, 4)
    for more in draft.rng.sample(_MORE, len(_MORE)):
        if len(re.findall(draft.noun, draft.text)) < number:
            draft.text += " " + more.format(noun=draft.noun)
    draft.ask(
        f'Use the word "{draft.noun}" at least {number} times.',
        f'The word "{draft.noun}" should appear at least {number} times.',
        keyword=draft.noun,
        frequency=number,
        relation="at least",
    )


def _forbidden(draft: _Draft) -> None:
    used = draft.text.casefold()
    free = [word for word in (*_QUALITIES, "very", "nice", "good", "really") if word not in used]
    words = draft.rng.sample(free, 2)
    draft.ask(
        f'Do not use the words "{words[0]}" and "{words[1]}".',
        f'Avoid the words "{words[0]}" and "{words[1]}".',
        forbidden_words=words,
    )


def _bullets(draft: _Draft) -> None:
    lines = re.split(r"(?<=[.!?])\s+", draft.text)
    draft.text = "\n".join(f"* {line}" for line in lines)
    draft.ask(
        f'Write exactly {len(lines)} bullet points, each starting with "* ".',
        f'Your answer must contain exactly {len(lines)} bullet points, written like "* this".',
        num_bullets=len(lines),
    )


def _highlights(draft: _Draft) -> None:
    draft.text = re.sub(rf"\b{draft.noun}\b", f"*{draft.noun}*", draft.text, count=1)
    draft.ask(
        "Highlight at least 1 part of your answer with markdown, like *this*.",
        "Put at least 1 word between asterisks, like *word*.",
        num_highlights=1,
    )


def _placeholders(draft: _Draft) -> None:
    number = draft.rng.randint(1, 2)
    draft.text += " Write to [address]." if number == 1 else " Write to [name] at [address]."
    draft.ask(
        f"Use at least {number} placeholder(s) in square brackets, such as [address].",
        num_placeholders=number,
    )


def _postscript(draft: _Draft) -> None:
    draft.text += f"\nP.S. The {draft.noun} is worth a visit."
    draft.ask(
        "At the end, add a postscript that starts with P.S.",
        postscript_marker="P.S.",
    )


def _title(draft: _Draft) -> None:
    draft.text = f"<<The {draft.noun}>>\n{draft.text}"
    draft.ask(
        "Give your answer a title in double angular brackets, such as <<title>>.",
    )


def _ending(draft: _Draft) -> None:
    phrase = draft.rng.choice(_ENDINGS)
    draft.text += f" {phrase}"
    draft.ask(
        f'End your answer with the exact phrase "{phrase}"',
        f'Finish with the exact words "{phrase}" and nothing after them.',
        end_phrase=phrase,
    )


def _no_comma(draft: _Draft) -> None:
    draft.text = draft.text.replace(",", "")
    draft.ask("Do not use any commas.", "Write without commas.")


def _lowercase(draft: _Draft) -> None:
    draft.text = draft.text.lower()
    draft.ask(
        "Write in English and in all lowercase letters.",
        "Use only lowercase letters, in English.",
    )


def _uppercase(draft: _Draft) -> None:
    draft.text = draft.text.upper()
    draft.ask(
        "Write in English and in all capital letters.",
        "Use only CAPITAL letters, in English.",
    )


def _quotation(draft: _Draft) -> None:
    draft.text = f'"{draft.text}"'
    draft.ask(
        "Wrap your whole answer in double quotation marks.",
        "Put your entire answer between double quotation marks.",
    )


def _letters(draft: _Draft) -> None:
    letter = draft.rng.choice("bdgkmpw")
    number = draft.text.casefold().count(letter)
    if number >= 2:
        draft.ask(
            f'The letter "{letter}" should appear at least {number} times.',
            letter=letter,
            let_frequency=number,
            let_relation="at least",
        )
    else:
        draft.ask(
            f'The letter "{letter}" should appear less than {number + 2} times.',
            letter=letter,
            let_frequency=number + 2,
            let_relation="less than",
        )


def _words(draft: _Draft) -> None:
    number = len(re.findall(r"\w+", draft.text))
    if draft.rng.random() < 0.5:
        most = number + draft.rng.randint(3, 12)
        draft.ask(
            f"Answer with less than {most} words.",
            f"Use less than {most} words.",
            num_words=most,
            relation="less than",
        )
    else:
        least = max(5, number - draft.rng.randint(1, 8))
        draft.ask(
            f"Answer with at least {least} words.",
            f"Use at least {least} words.",
            num_words=least,
            relation="at least",
        )


# In the order of building an answer: later steps keep what earlier ones made.
_STEPS = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_content:postscript": _postscript,
    "startend:end_checker": _ending,
    "keywords:forbidden_words": _forbidden,
    "detectable_format:title": _title,
    "punctuation:no_comma": _no_comma,
    "change_case:english_lowercase": _lowercase,
    "change_case:english_capital": _uppercase,
    "keywords:letter_frequency": _letters,
    "length_constraints:number_words": _words,
    "startend:quotation": _quotation,
}
# Both could be met, but read as one contradiction, or one undoes the other's form.
_ALSO_APART = {
    "detectable_format:number_bullet_lists": {
        "detectable_format:number_highlighted_sections",
        "startend:quotation",
        "detectable_content:postscript",
    },
    "detectable_content:postscript": {"startend:end_checker"},
}
