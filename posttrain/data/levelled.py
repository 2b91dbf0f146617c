"""reasoning-gym families as endless sources, one stream of questions per level."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from posttrain.data.generated import MAX_MISSES, asked, draw, families_of
from posttrain.data.quarantine import BadRow, Raw
from posttrain.data.records import make_prompt, question_hashes
from posttrain.recipe.rows import DEFAULT_MAX, DataSource, Levels
from posttrain.records import Prompt, content_hash
from posttrain.rewards.reasoning_gym import level_config, num_levels

LEVELLED = "levelled"
"""Key in a prompt's meta: label of the family that made it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelledFamily:
    """A family of a source with levels."""

    where: str
    source: DataSource
    family: str
    fixed: dict[str, Any]
    """Configuration keys that no level changes."""
    levels: Levels
    highest: int
    """Highest level: levels.max, or the family's last one if that is lower than the default."""

    @property
    def label(self) -> str:
        """Return its name in prompts and tables."""
        return f"{self.where} reasoning_gym:{self.family}"

    @property
    def capability(self) -> str:
        """Return the capability of its prompts."""
        return self.source.capability or self.family

    @property
    def all_levels(self) -> range:
        """Return all levels, ascending."""
        return range(self.levels.min, self.highest + 1)

    def config(self, level: int) -> dict[str, Any]:
        """Return the family's configuration at a level."""
        return level_config(self.family, level) | self.fixed

    def meta(self, level: int) -> dict[str, Any]:
        """Return the meta of its prompts at a level, without their entry."""
        return {
            "family": self.family,
            "config": self.config(level),
            "level": str(level),
            LEVELLED: self.label,
        }

    def rows(self, level: int, *, seed: int, role: str, start: int = 0) -> Iterator[Raw]:
        """Yield its questions of a level without end, determined by the arguments."""
        stream = content_hash(seed, role, self.label)
        return draw(self.family, self.config(level), stream=stream, where=self.where, start=start)


def levelled_families(source: DataSource, where: str) -> list[LevelledFamily]:
    """Return the families of a source with levels; none if it has no levels."""
    levels = source.levels
    if levels is None:
        return []
    found: list[LevelledFamily] = []
    for family, config in families_of(source).items():
        highest = levels.max
        if highest is None:
            highest = max(levels.start, min(DEFAULT_MAX, num_levels(family) - 1))
        found.append(
            LevelledFamily(
                where=where,
                source=source,
                family=family,
                fixed=config,
                levels=levels,
                highest=highest,
            )
        )
    return found


def new_prompts(
    family: LevelledFamily,
    level: int,
    *,
    num: int,
    seed: int,
    start: int,
    known: set[str],
    held: frozenset[str],
) -> tuple[list[Prompt], int]:
    """Draw up to `num` prompts that are neither `known` (ids) nor `held` out (question hashes).

    `start` is the number of questions drawn before; the new number is returned with the prompts.
    Fewer prompts are returned only if the level has no more.
    """
    meta = family.meta(level)
    found: list[Prompt] = []
    ids = set(known)
    misses = 0
    rows = family.rows(level, seed=seed, role="levels", start=start)
    while len(found) < num and misses < MAX_MISSES:
        raw = next(rows)
        start += 1
        misses += 1
        try:
            if raw.bad is not None:
                continue
            conversation, own_meta = asked(raw, meta)
            prompt = make_prompt(conversation, family.source, family.capability, own_meta)
        except BadRow:
            continue
        if prompt.prompt_id in ids or held & question_hashes(prompt):
            continue
        ids.add(prompt.prompt_id)
        found.append(prompt)
        misses = 0
    return found, start
