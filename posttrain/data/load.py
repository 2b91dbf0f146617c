"""The recipe's data as one bundle: each row is a sample, a prompt, held out, or quarantined."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from posttrain.data.generated import MAX_MISSES
from posttrain.data.quarantine import BadRow, Raw, by_reason, quarantine_row, write_quarantine
from posttrain.data.records import make_prompt, make_sample, question_hashes
from posttrain.data.units import Find, Unit, units_of
from posttrain.errors import HealthStop, RecipeError
from posttrain.recipe.rows import DataSource
from posttrain.recipe.schema import Recipe, user_functions
from posttrain.records import Prompt, Sample, content_hash
from posttrain.rewards import use_functions

# Reasons for which a sound row leaves: they do not count against max_bad_rows.
_SOUND = frozenset({"heldout", "duplicate", "no_answer"})
# Reasons for which a generated question is replaced by the next one of its stream.
_DRAWN_AGAIN = frozenset({"heldout", "duplicate"})
_log = logging.getLogger("posttrain.data")

Kept = TypeVar("Kept", Sample, Prompt)


@dataclass(kw_only=True, slots=True)
class DataBundle:
    """Data of a recipe."""

    samples: list[Sample] = field(default_factory=list[Sample])
    prompts: list[Prompt] = field(default_factory=list[Prompt])
    suites: dict[str, list[Prompt]] = field(default_factory=dict[str, list[Prompt]])
    """Held-out prompts by suite; `heldout` is the built-in one."""
    quarantine: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Rows with source, line, reason, detail, excerpt, malformed; write with write_quarantine."""
    num_redrawn: int = 0
    """Generated questions that were replaced, because they repeat another or are held out."""
    notes: list[str] = field(default_factory=list[str])
    """Warnings for the user, such as exhausted families."""


class BadRows(HealthStop):
    """Too many rows of a source are unusable; `quarantine` holds all rows that left so far."""

    def __init__(self, message: str, *, hint: str, quarantine: list[dict[str, Any]]) -> None:
        super().__init__(message, hint=hint)
        self.quarantine = quarantine


def load_data(
    recipe: Recipe, *, find: Find, seed: int, quarantine_path: Path | None = None
) -> DataBundle:
    """Read everything that a recipe names; equal arguments and files give equal bundles.

    Held-out prompts are set aside before anything is trained on, and their questions leave the
    training data for quarantine. Raises BadRows (a HealthStop) past max_bad_rows, after writing
    the quarantine to `quarantine_path` where one is given; RecipeError for missing files, columns
    and families and for empty data; SetupError for a missing package.
    """
    use_functions(function for _, function in user_functions(recipe))
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
    """Hashes of questions that must not be trained on."""

    def load(self) -> None:
        recipe, bundle = self.recipe, self.bundle
        samples = self._units(recipe.sft.data, "sft.data", prompts=False) if recipe.sft else []
        prompts = self._units(recipe.rl.data, "rl.data") if recipe.rl else []
        built_in = "heldout" in recipe.eval.suites
        for index, suite in enumerate(recipe.eval.suites):
            if suite == "heldout":
                bundle.suites["heldout"] = []
                continue
            where = f"eval.suites[{index}].data"
            tests = self._units(suite.data, where)
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
            taken = self._take_samples(unit, self.held, seen, unit.size)
            bundle.samples += [sample for _, sample in taken]
        if recipe.sft:
            self._refuse_empty(bundle.samples, samples, "sft.data")

    def _units(
        self, sources: Sequence[DataSource], where: str, *, prompts: bool = True
    ) -> list[Unit]:
        return units_of(sources, where, find=self.find, seed=self.seed, prompts=prompts)

    def _hold_out(
        self, units: Sequence[Unit], size: int, seen: set[str]
    ) -> list[list[tuple[Raw, Prompt]]]:
        """Fill the built-in suite; return the rest of what was read, by unit."""
        pools: list[list[tuple[Raw, Prompt]]] = []
        held: list[Prompt] = []
        quotas = _shares([(unit.capability, unit.label) for unit in units], size)
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
            chosen = set(_choose([p.prompt_id for _, p in pool], quota, seed=self.seed))
            held += [prompt for _, prompt in pool if prompt.prompt_id in chosen]
            pools.append([pair for pair in pool if pair[1].prompt_id not in chosen])
        if size:
            self.bundle.suites["heldout"] = held
            self._hold(*held)
        return pools

    def _too_few(self, unit: Unit, usable: int, quota: int) -> RecipeError:
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
        self, unit: Unit, role: str, held: set[str], seen: set[str], want: int | None
    ) -> list[tuple[Raw, Prompt]]:
        def make(raw: Raw) -> Prompt:
            conversation, meta = unit.converse(raw)
            return make_prompt(conversation, unit.source, unit.capability, meta)

        return self._take(unit, role, make, lambda p: p.prompt_id, held, seen, want)

    def _take_samples(
        self, unit: Unit, held: set[str], seen: set[str], want: int | None
    ) -> list[tuple[Raw, Sample]]:
        def make(raw: Raw) -> Sample:
            conversation, meta = unit.converse(raw)
            if not conversation.answer.strip():
                raise BadRow("no_answer", "the family gives no reference answer to learn")
            return make_sample(conversation, unit.source, unit.capability, meta)

        return self._take(unit, "sft", make, lambda s: s.sample_id, held, seen, want)

    def _take(
        self,
        unit: Unit,
        role: str,
        make: Callable[[Raw], Kept],
        identify: Callable[[Kept], str],
        held: set[str],
        seen: set[str],
        want: int | None,
    ) -> list[tuple[Raw, Kept]]:
        """Take up to `want` new records of a unit; quarantine bad, held-out and repeated rows.

        Held-out and repeated questions of a generator are no one's rows: it draws again.
        """
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
                if unit.endless and bad.reason in _DRAWN_AGAIN:
                    self.bundle.num_redrawn += 1
                else:
                    self._leave(unit, raw, bad)
                if unit.endless and misses >= MAX_MISSES:
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

    def _leave(self, unit: Unit, raw: Raw, bad: BadRow) -> None:
        malformed = bad.reason not in _SOUND
        self.bundle.quarantine.append(quarantine_row(unit.label, raw, bad, malformed=malformed))

    def _stop_if_too_bad(self, unit: Unit) -> None:
        left = [row for row in self.bundle.quarantine if row["source"] == unit.label]
        bad = [row for row in left if row["malformed"]]
        limit = self.recipe.max_bad_rows
        if len(bad) > limit * unit.num_read:
            first = bad[0]
            raise BadRows(
                f"{unit.label}: {len(bad)} of {unit.num_read} rows are unusable "
                f"({len(bad) / unit.num_read:.2%}, max_bad_rows is {limit:.2%}): {by_reason(bad)}; "
                f"the first, line {first['line']}: {first['detail']}",
                hint=f"fix the rows of {unit.where}, or raise max_bad_rows to leave them out",
                quarantine=self.bundle.quarantine,
            )

    def _exhausted(self, unit: Unit, role: str, got: int, want: int) -> None:
        left = [row for row in self.bundle.quarantine if row["source"] == unit.label]
        said = f"{unit.label}: {got} usable questions for {role}, {want} were asked for"
        if not got:
            why = by_reason(left) or "all repeat others or are held out"
            raise RecipeError(
                f"{said}; of {unit.num_read} drawn {why}",
                hint=f"ask for fewer under {unit.where} (size, eval.heldout_size), raise the "
                "family's level, or take another family",
            )
        self.bundle.notes.append(f"{said}: the family has no more at this level")

    def _refuse_empty(self, records: Sequence[Any], units: Sequence[Unit], where: str) -> None:
        if not records:
            labels = {unit.label for unit in units}
            left = [row for row in self.bundle.quarantine if row["source"] in labels]
            raise RecipeError(
                f"{where}: nothing is left of {sum(u.num_read for u in units)} rows: "
                f"{by_reason(left)}",
                hint=f"give {where} rows that are neither held out nor repeated",
            )


def assert_disjoint(bundle: DataBundle) -> None:
    """Raise AssertionError if a suite's question is also trained on; hashes are computed anew."""
    for name, prompts in bundle.suites.items():
        held = {hashed for prompt in prompts for hashed in question_hashes(prompt)}
        for record in (*bundle.samples, *bundle.prompts):
            if held & question_hashes(record):
                shown = record.messages[-1 if isinstance(record, Prompt) else -2]["content"][:80]
                raise AssertionError(f"suite {name!r} and the training data share: {shown!r}")


def _shares(units: Sequence[tuple[str, str]], size: int) -> list[int]:
    """Return how many prompts each (capability, label) holds out, `size` per capability.

    >>> _shares([("math", "a"), ("math", "b"), ("logic", "c")], 5)
    [3, 2, 5]
    """
    given: list[int] = []
    for index, (capability, _) in enumerate(units):
        alike = [i for i, (other, _) in enumerate(units) if other == capability]
        given.append(size // len(alike) + (alike.index(index) < size % len(alike)))
    return given


def _choose(prompt_ids: Iterable[str], size: int, *, seed: int) -> list[str]:
    """Choose `size` ids by the hash of seed and id, independent of their order."""
    return sorted(prompt_ids, key=lambda prompt_id: content_hash(seed, "heldout", prompt_id))[:size]
