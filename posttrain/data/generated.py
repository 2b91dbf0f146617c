"""Endless raw rows of reasoning-gym families and our own generators, reproducible by seed."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from posttrain.data.constraints import Writing, make_writing
from posttrain.data.python_functions import Problem, make_problem
from posttrain.data.quarantine import BadRow, Raw
from posttrain.data.turns import Conversation
from posttrain.errors import RecipeError
from posttrain.recipe.rows import DataSource
from posttrain.records import Message, content_hash
from posttrain.rewards.reasoning_gym import family_keys, level_config, make_entries

MAX_MISSES = 500
"""Draws in a row without a new question after which a family counts as exhausted."""
_CHUNK = 64
_GENERATORS: Mapping[str, Callable[[random.Random, int], Problem | Writing]] = {
    "python_functions": make_problem,
    "constraints": make_writing,
}


def families_of(source: DataSource) -> dict[str, dict[str, Any]]:
    """Return the source's families with their configurations, levels translated into keys."""
    asked = source.reasoning_gym
    assert asked is not None
    written = asked if isinstance(asked, dict) else {name: dict[str, Any]() for name in asked}
    families = {family: dict(config) for family, config in written.items()}
    for family, config in families.items():
        if "level" in config and "level" not in family_keys()[family]:
            families[family] = level_config(family, config.pop("level")) | config
    return families


def level_name(config: Mapping[str, Any]) -> str | None:
    """Describe a family's configuration; None for its defaults.

    >>> level_name({"min_terms": 2, "max_terms": 3})
    'max_terms=3 min_terms=2'
    """
    return " ".join(f"{key}={config[key]}" for key in sorted(config)) or None


def asked(raw: Raw, meta: Mapping[str, Any]) -> tuple[Conversation, dict[str, Any]]:
    """Return a question's conversation, and `meta` with the entry that the verifier needs."""
    assert raw.values is not None
    turns = [Message(role="user", content=raw.values["question"])]
    if raw.values["answer"] is not None and not raw.values["answer"].strip():
        raise BadRow("no_answer", "the answer is empty")
    answer = raw.values["answer"] or ""
    return Conversation(turns=turns, answer=answer), {**meta, "entry": raw.values["entry"]}


def draw(
    family: str, config: dict[str, Any], *, stream: str, where: str, start: int = 0
) -> Iterator[Raw]:
    """Yield questions of a family without end.

    `stream` is a hash that selects the random stream, independent of other sources and their order;
    `start` skips the first questions. Raises RecipeError if the family refuses its configuration.
    """
    for chunk in itertools.count(start // _CHUNK):
        seed = int(content_hash(stream, family, config, chunk)[:8], 16) % 2**31
        try:
            made = make_entries(family, config, seed=seed, size=_CHUNK)
        except ValueError as error:
            raise RecipeError(
                f"{where}: family {family!r} with {json.dumps(config)}: {error}",
                hint=f"change the keys of {family} under {where}",
            ) from error
        for line, entry in enumerate(made, start=chunk * _CHUNK + 1):
            if line <= start:
                continue
            if "error" in entry:
                bad = BadRow("not_generated", entry["error"])
                yield Raw(line=line, excerpt=f"{family} seed {seed}", bad=bad)
            else:
                yield Raw(line=line, excerpt=entry["question"], values=entry)


def make_tasks(generator: str, levels: Sequence[int], *, stream: str) -> Iterator[Raw]:
    """Yield tasks of one of our own generators without end, levels mixed; `stream` as in `draw`."""
    for line in itertools.count(1):
        rng = random.Random(content_hash(stream, generator, list(levels), line))
        level = rng.choice(levels)
        made = _GENERATORS[generator](rng, level)
        values = {
            "question": made.question,
            "answer": made.answer,
            "reference": made.reference,
            "level": f"level {level}",
        }
        yield Raw(line=line, excerpt=made.question, values=values)
