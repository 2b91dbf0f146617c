"""The recipe's data as one bundle: each row a sample, a prompt, held out, or quarantined."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from posttrain.data.generated import asked, draw, families_of, level_name, make_tasks
from posttrain.data.heldout import choose, shares
from posttrain.data.levelled import LevelledFamily, levelled_families
from posttrain.data.quarantine import BadRow, Raw, by_reason, quarantine_row, write_quarantine
from posttrain.data.reading import is_local, open_table
from posttrain.data.records import make_prompt, make_sample, question_hashes
from posttrain.data.turns import Conversation, find_layout, to_conversation
from posttrain.errors import HealthStop, RecipeError
from posttrain.recipe.rows import DataSource
from posttrain.recipe.schema import Recipe
from posttrain.records import Message, Prompt, Sample, content_hash
from posttrain.rewards import find_verifier

# Reasons for which a sound row leaves: they do not count against max_bad_rows.
_SOUND = frozenset({"heldout", "duplicate", "no_answer"})
# Draws in a row without a new question after which a family counts as exhausted.
_PATIENCE = 500
_log = logging.getLogger("posttrain.data")

Find = Callable[[str], Path]
Kept = TypeVar("Kept", Sample, Prompt)


@dataclass(kw_only=True, slots=True)
class DataBundle:
    """What a recipe's data came to."""

    samples: list[Sample] = field(default_factory=list[Sample])
    prompts: list[Prompt] = field(default_factory=list[Prompt])
    suites: dict[str, list[Prompt]] = field(default_factory=dict[str, list[Prompt]])
    """Held-out prompts by suite; `heldout` is the built-in one."""
    quarantine: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Rows with source, line, reason, detail, excerpt, malformed; write with write_quarantine."""
    notes: list[str] = field(default_factory=list[str])
    """What a person should know: exhausted families."""


class BadRows(HealthStop):
    """Too many rows of a source are unusable; `quarantine` holds all rows that left so far."""

    def __init__(self, message: str, *, hint: str, quarantine: list[dict[str, Any]]) -> None:
        super().__init__(message, hint=hint)
        self.quarantine = quarantine


@dataclass(kw_only=True, slots=True)
class _Unit:
    """One file, data set or family: what is read, sized and tagged by itself."""

    source: DataSource
    where: str
    label: str
    capability: str
    rows: Callable[[str], Iterator[Raw]]
    """Takes the name of a random stream, which files ignore."""
    converse: Callable[[Raw], tuple[Conversation, dict[str, Any]]]
    endless: bool
    size: int | None
    """Rows to take for training."""
    num_read: int = 0


def load_data(
    recipe: Recipe, *, find: Find, seed: int, quarantine_path: Path | None = None
) -> DataBundle:
    """Read everything a recipe names; same arguments and files, same bundle.

    Held-out prompts are set aside before anything is trained on, and their questions leave the
    training data for quarantine. Raises BadRows (a HealthStop) past max_bad_rows, after writing
    the quarantine to `quarantine_path` where one is given; RecipeError for missing files, columns
    and families and for empty data; EnvironmentFault for a missing package.
    """
    bundle = DataBundle()
    loader = _Loader(recipe=recipe, find=find, seed=seed, bundle=bundle)
    try:
        loader.load()
    except BadRows as stop:
        if quarantine_path is not None:
            write_quarantine(quarantine_path, stop.quarantine)
            stop.hint += f"; every row that left is in {quarantine_path}"
        raise
    for note in bundle.notes:
        _log.warning("%s", note)
    return bundle


@dataclass(kw_only=True, slots=True)
class _Loader:
    recipe: Recipe
    find: Find
    seed: int
    bundle: DataBundle
    held: set[str] = field(default_factory=set[str])
    """Hashes of every question that must not be trained on."""

    def load(self) -> None:
        recipe, bundle = self.recipe, self.bundle
        samples = self._units(recipe.sft.data, "sft.data", False) if recipe.sft else []
        prompts = self._units(recipe.rl.data, "rl.data", True) if recipe.rl else []
        built_in = "heldout" in recipe.eval.suites
        for index, suite in enumerate(recipe.eval.suites):
            if suite == "heldout":
                bundle.suites["heldout"] = []
                continue
            where = f"eval.suites[{index}].data"
            tests = self._units(suite.data, where, True)
            seen: set[str] = set()
            bundle.suites[suite.name] = [
                prompt
                for unit in tests
                for _, prompt in self._take_prompts(
                    unit, f"suite:{suite.name}", set[str](), seen, unit.size
                )
            ]
            self._refuse_empty(bundle.suites[suite.name], tests, where)
        self._hold(*(p for suite in bundle.suites.values() for p in suite))
        seen = set()
        pools = self._hold_out(prompts, recipe.eval.heldout_size if built_in else 0, seen)
        for unit, pool in zip(prompts, pools, strict=True):
            if unit.endless:
                pool = self._take_prompts(unit, "rl", self.held, seen, unit.size)
            for raw, prompt in pool:
                if self.held & question_hashes(prompt):
                    self._leave(unit, raw, BadRow("heldout", "the same question is held out"))
                else:
                    bundle.prompts.append(prompt)
        if recipe.rl:
            self._refuse_empty(bundle.prompts, prompts, "rl.data")
        seen = set()
        for unit in samples:
            taken = self._take_samples(unit, "sft", self.held, seen, unit.size)
            bundle.samples += [sample for _, sample in taken]
        if recipe.sft:
            self._refuse_empty(bundle.samples, samples, "sft.data")

    def _hold_out(
        self, units: Sequence[_Unit], size: int, seen: set[str]
    ) -> list[list[tuple[Raw, Prompt]]]:
        """Fill the built-in suite; give back what was read of each file and not set aside."""
        pools: list[list[tuple[Raw, Prompt]]] = []
        held: list[Prompt] = []
        quotas = shares([(unit.capability, unit.label) for unit in units], size)
        for unit, quota in zip(units, quotas, strict=True):
            want = unit.size
            if unit.endless:
                drawn = self._take_prompts(unit, "heldout", self.held, seen, quota)
                held += [prompt for _, prompt in drawn]
                pools.append([])
                continue
            most = None if want is None else want + quota
            pool = self._take_prompts(unit, "rl", self.held, seen, most)
            if quota and len(pool) <= quota:
                raise self._too_few(unit, len(pool), quota)
            chosen = set(choose({p.prompt_id: p for _, p in pool}, quota, seed=self.seed))
            held += [prompt for _, prompt in pool if prompt.prompt_id in chosen]
            pools.append([pair for pair in pool if pair[1].prompt_id not in chosen])
        if size:
            self.bundle.suites["heldout"] = held
            self._hold(*held)
        return pools

    def _too_few(self, unit: _Unit, usable: int, quota: int) -> RecipeError:
        left = by_reason([row for row in self.bundle.quarantine if row["source"] == unit.label])
        out = f" of {unit.num_read} read ({left} left out)" if left else ""
        smaller = f"set eval.heldout_size below {usable}, or " if usable > 1 else ""
        once = ", each once" if "duplicate" in left else ""
        return RecipeError(
            f"{unit.label}: {usable} usable rows{out}, and eval.heldout_size sets aside {quota} "
            "of them: none are left to train on",
            hint=f"{smaller}give {unit.where} more rows{once}",
        )

    def _hold(self, *prompts: Prompt) -> None:
        for prompt in prompts:
            self.held |= question_hashes(prompt)

    def _take_prompts(
        self, unit: _Unit, role: str, held: set[str], seen: set[str], want: int | None
    ) -> list[tuple[Raw, Prompt]]:
        def make(raw: Raw) -> Prompt:
            conversation, meta = unit.converse(raw)
            return make_prompt(conversation, unit.source, unit.capability, meta)

        return self._take(unit, role, make, lambda p: p.prompt_id, held, seen, want)

    def _take_samples(
        self, unit: _Unit, role: str, held: set[str], seen: set[str], want: int | None
    ) -> list[tuple[Raw, Sample]]:
        def make(raw: Raw) -> Sample:
            conversation, meta = unit.converse(raw)
            if not conversation.answer.strip():
                raise BadRow("no_answer", "the family gives no reference answer to learn")
            return make_sample(conversation, unit.source, unit.capability, meta)

        return self._take(unit, role, make, lambda s: s.sample_id, held, seen, want)

    def _take(
        self,
        unit: _Unit,
        role: str,
        make: Callable[[Raw], Kept],
        identify: Callable[[Kept], str],
        held: set[str],
        seen: set[str],
        want: int | None,
    ) -> list[tuple[Raw, Kept]]:
        """Up to `want` new records of a unit; what is bad, held out or known goes to quarantine."""
        taken: list[tuple[Raw, Kept]] = []
        misses = 0
        rows = unit.rows(role) if want != 0 else iter(())
        for raw in rows:
            unit.num_read += 1
            misses += 1
            try:
                if raw.bad is not None:
                    raise raw.bad
                record = make(raw)
                if held & question_hashes(record):
                    raise BadRow("heldout", "the same question is held out")
                if identify(record) in seen:
                    raise BadRow("duplicate", "an earlier row is the same")
            except BadRow as bad:
                self._leave(unit, raw, bad)
                if unit.endless and misses >= _PATIENCE:
                    break
                continue
            misses = 0
            seen.add(identify(record))
            taken.append((raw, record))
            if len(taken) == want:
                break
        self._stop_if_too_bad(unit)
        if unit.endless and want is not None and len(taken) < want:
            self._exhausted(unit, role, len(taken), want)
        if not unit.num_read and want != 0:
            raise RecipeError(f"{unit.label} holds no rows", hint=f"give {unit.where} some data")
        return taken

    def _leave(self, unit: _Unit, raw: Raw, bad: BadRow) -> None:
        malformed = bad.reason not in _SOUND
        self.bundle.quarantine.append(quarantine_row(unit.label, raw, bad, malformed=malformed))

    def _stop_if_too_bad(self, unit: _Unit) -> None:
        left = [row for row in self.bundle.quarantine if row["source"] == unit.label]
        bad = [row for row in left if row["malformed"]]
        limit = self.recipe.max_bad_rows
        if len(bad) > limit * unit.num_read:
            first = bad[0]
            raise BadRows(
                f"{unit.label}: {len(bad)} of {unit.num_read} rows are unusable "
                f"({len(bad) / unit.num_read:.2%}, max_bad_rows is {limit:.2%}): {by_reason(bad)}; "
                f"the first, line {first['line']}: {first['detail']}",
                hint=f"mend the rows of {unit.where}, or raise max_bad_rows to leave them out",
                quarantine=self.bundle.quarantine,
            )

    def _exhausted(self, unit: _Unit, role: str, got: int, want: int) -> None:
        left = [row for row in self.bundle.quarantine if row["source"] == unit.label]
        said = f"{unit.label}: {got} usable questions for {role}, {want} were asked for"
        if not got:
            raise RecipeError(
                f"{said}; of {unit.num_read} drawn: {by_reason(left)}",
                hint=f"ask for fewer under {unit.where} (size, eval.heldout_size), raise the "
                "family's level, or take another family",
            )
        self.bundle.notes.append(f"{said}: the family has no more at this level")

    def _refuse_empty(self, records: Sequence[Any], units: Sequence[_Unit], where: str) -> None:
        if not records:
            labels = {unit.label for unit in units}
            left = [row for row in self.bundle.quarantine if row["source"] in labels]
            raise RecipeError(
                f"{where}: nothing is left of {sum(u.num_read for u in units)} rows: "
                f"{by_reason(left)}",
                hint=f"give {where} rows that are neither held out nor repeated",
            )

    def _units(self, sources: Sequence[DataSource], where: str, prompts: bool) -> list[_Unit]:
        units: list[_Unit] = []
        repeats: Counter[str] = Counter()
        for index, source in enumerate(sources):
            here = f"{where}[{index}]"
            if source.path is not None:
                units.append(self._table_unit(source, here, prompts))
                continue
            if source.levels is not None:
                units += self._level_units(source, here)
                continue
            if source.generated is not None:
                for name, spec in source.generated.named.items():
                    key = content_hash("generated", name, spec.levels)
                    unit = _generator_unit(source, here, name, spec.levels, self.seed, repeats[key])
                    units.append(unit)
                    repeats[key] += 1
                continue
            for family, config in families_of(source, here).items():
                key = content_hash(family, config)
                asked = source.reasoning_gym
                written = asked[family] if isinstance(asked, dict) else {}
                units.append(
                    _family_unit(source, here, family, config, written, self.seed, repeats[key])
                )
                repeats[key] += 1
        return units

    def _level_units(self, source: DataSource, where: str) -> list[_Unit]:
        """A unit per family and level: all are held out from, the first is trained on at first."""
        return [
            _level_unit(family, level, self.seed)
            for family in levelled_families(source, where)
            for level in family.all_levels
        ]

    def _table_unit(self, source: DataSource, where: str, prompts: bool) -> _Unit:
        assert source.path is not None
        assert source.capability is not None
        if prompts and source.verifier is None:
            raise RecipeError(
                f"{where}: nothing can decide answers to {source.path}",
                hint=f"under {where} write verifier: math, exact, choice, code or instructions",
            )
        name = Path(source.path).name if is_local(source.path) else source.path
        table = open_table(source.path, source.split, self.find, where)
        verifier = None if source.verifier is None else find_verifier(source.verifier)
        layout = find_layout(
            source.columns, table.columns, where, name, verifier=verifier, prompts=prompts
        )

        def converse(raw: Raw) -> tuple[Conversation, dict[str, Any]]:
            assert raw.values is not None
            return to_conversation(raw.values, layout), {"source": name, "line": raw.line}

        return _Unit(
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
) -> _Unit:
    meta = {"family": family, "config": config}
    if level := level_name(written):
        meta["level"] = level

    return _Unit(
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


def _level_unit(family: LevelledFamily, level: int, seed: int) -> _Unit:
    meta = family.meta(level)
    return _Unit(
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
) -> _Unit:
    def converse(raw: Raw) -> tuple[Conversation, dict[str, Any]]:
        assert raw.values is not None
        conversation = Conversation(
            turns=[Message(role="user", content=raw.values["question"])],
            answer=raw.values["answer"],
            reference=raw.values["reference"],
        )
        return conversation, {"generator": name, "level": raw.values["level"]}

    return _Unit(
        source=source,
        where=where,
        label=f"{where} generated:{name}",
        capability=source.capability or name,
        rows=lambda role: make_tasks(name, levels, stream=content_hash(seed, role, repeat)),
        converse=converse,
        endless=True,
        size=source.size,
    )
