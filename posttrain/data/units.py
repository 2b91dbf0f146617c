"""Units of a recipe's sources: each file, data set, family, level and generator by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.data.generated import asked, draw, families_of, level_name, make_tasks
from posttrain.data.levelled import LevelledFamily, levelled_families
from posttrain.data.quarantine import Raw
from posttrain.data.reading import open_table
from posttrain.data.turns import Conversation, find_layout, further_columns, to_conversation
from posttrain.recipe.files import is_data_file
from posttrain.recipe.rows import DataSource
from posttrain.records import Message, content_hash
from posttrain.rewards import find_verifier
from posttrain.rewards.python import COLUMNS

Find = Callable[[str], Path]
"""Path as a recipe writes it -> the file or folder; FileNotFoundError where there is none."""


@dataclass(kw_only=True, slots=True)
class Unit:
    """A file, data set, family, level or generator, with its own size and capability."""

    source: DataSource
    where: str
    label: str
    capability: str
    rows: Callable[[str], Iterator[Raw]]
    """Function from the name of a random stream, which files ignore, to raw rows."""
    converse: Callable[[Raw], tuple[Conversation, dict[str, Any]]]
    endless: bool
    size: int | None
    """Number of rows to train on; None for all."""
    num_read: int = 0


def units_of(
    sources: Sequence[DataSource], where: str, *, find: Find, seed: int, prompts: bool
) -> list[Unit]:
    """Return the units of sources, in order.

    Raises RecipeError for missing files and columns.
    """
    units: list[Unit] = []
    repeats: Counter[str] = Counter()
    for index, source in enumerate(sources):
        here = f"{where}[{index}]"
        if source.path is not None:
            units.append(_table_unit(source, here, find, prompts=prompts))
        elif source.levels is not None:
            units += [
                _level_unit(family, level, seed)
                for family in levelled_families(source, here)
                for level in family.all_levels
            ]
        elif source.generated is not None:
            for name, spec in source.generated.named.items():
                key = content_hash("generated", name, spec.levels)
                units.append(_generator_unit(source, here, name, spec.levels, seed, repeats[key]))
                repeats[key] += 1
        else:
            for family, config in families_of(source).items():
                key = content_hash(family, config)
                named = source.reasoning_gym
                written = named[family] if isinstance(named, dict) else {}
                units.append(
                    _family_unit(source, here, family, config, written, seed, repeats[key])
                )
                repeats[key] += 1
    return units


def _table_unit(source: DataSource, where: str, find: Find, *, prompts: bool) -> Unit:
    assert source.path is not None
    assert source.capability is not None
    name = Path(source.path).name if is_data_file(source.path) else source.path
    table = open_table(source.path, source.split, find, where)
    verifier = find_verifier(source.verifiers[0]) if source.verifiers else None
    layout = find_layout(
        source.columns, table.columns, where, name, verifier=verifier, prompts=prompts
    )

    def converse(raw: Raw) -> tuple[Conversation, dict[str, Any]]:
        assert raw.values is not None
        meta: dict[str, Any] = {"source": name, "line": raw.line}
        if verifier is not None and verifier.columns != ():
            meta[COLUMNS] = further_columns(raw.values, verifier.columns)
        return to_conversation(raw.values, layout), meta

    return Unit(
        source=source,
        where=where,
        label=f"{where} {name}",
        capability=source.capability,
        rows=lambda role: table.rows(),
        converse=converse,
        endless=False,
        size=source.size,
    )


def _family_unit(
    source: DataSource,
    where: str,
    family: str,
    config: dict[str, Any],
    written: dict[str, Any],
    seed: int,
    repeat: int,
) -> Unit:
    meta = {"family": family, "config": config}
    if level := level_name(written):
        meta["level"] = level

    return Unit(
        source=source,
        where=where,
        label=f"{where} reasoning_gym:{family}",
        capability=source.capability or family,
        rows=lambda role: draw(
            family, config, stream=content_hash(seed, role, repeat), where=where
        ),
        converse=lambda raw: asked(raw, meta),
        endless=True,
        size=source.size,
    )


def _level_unit(family: LevelledFamily, level: int, seed: int) -> Unit:
    meta = family.meta(level)
    return Unit(
        source=family.source,
        where=family.where,
        label=f"{family.label} level {level}",
        capability=family.capability,
        rows=lambda role: family.rows(level, seed=seed, role=role),
        converse=lambda raw: asked(raw, meta),
        endless=True,
        size=family.source.size if level == family.levels.start else 0,
    )


def _generator_unit(
    source: DataSource, where: str, name: str, levels: list[int], seed: int, repeat: int
) -> Unit:
    def converse(raw: Raw) -> tuple[Conversation, dict[str, Any]]:
        assert raw.values is not None
        conversation = Conversation(
            turns=[Message(role="user", content=raw.values["question"])],
            answer=raw.values["answer"],
            reference=raw.values["reference"],
        )
        return conversation, {"generator": name, "level": raw.values["level"]}

    return Unit(
        source=source,
        where=where,
        label=f"{where} generated:{name}",
        capability=source.capability or name,
        rows=lambda role: make_tasks(name, levels, stream=content_hash(seed, role, repeat)),
        converse=converse,
        endless=True,
        size=source.size,
    )
