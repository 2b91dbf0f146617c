"""Verifier `{python: my_rewards.py:score}`: a function of the user's own decides.

The function runs in worker processes that are forked from one that has loaded it, with a limit of
time and memory: a boundary against accidents, not a sandbox. It takes one completion,
`score(completion, reference, *, prompt, <column>)`, or all completions of a prompt at once in TRL's
form, `score(completions, <column>, **kwargs)`; either may be async. Arguments other than the
completion are passed by name: `prompt`, `reference` and columns of the data row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import Field, field_validator

from posttrain.errors import RecipeError
from posttrain.progress import note
from posttrain.records import Outcome, OutcomeKind, Prompt
from posttrain.rewards.python_source import Form, split_target
from posttrain.rewards.verifier import Verifier, undecided
from posttrain.rewards.workers import WorkerFailure, WorkerKind, ask, loaded
from posttrain.spec import Spec

COLUMNS = "columns"
"""Key in a prompt's meta: the columns of its data row that the function reads."""
_told: set[str] = set()


class UserFunction(Spec):
    """A function of your own that returns a bool, a number or an Outcome.

    The recipe then runs your code on this machine.
    """

    python: str
    """`file.py:name`, the file relative to the recipe, or `package.module:name`."""
    threshold: float = 1.0
    """Score from which an answer passes, if the function returns numbers."""
    wall_seconds: float = Field(default=10.0, gt=0.0)
    """Time limit of one call."""
    memory_mib: int = Field(default=4096, ge=64)
    """Memory that a call may take beyond what importing the file took."""

    @field_validator("python")
    @classmethod
    def _has_parts(cls, target: str) -> str:
        split_target(target)
        return target

    @property
    def name(self) -> str:
        """Name in prompts, tables and the report; the same wherever the file is moved.

        >>> UserFunction(python="rewards/mine.py:score", threshold=0.5).name
        'mine.py:score >= 0.5'
        """
        place, name = split_target(self.python)
        place = Path(place).name if place.endswith(".py") else place
        return f"{place}:{name}" + (f" >= {self.threshold:g}" if self.threshold != 1.0 else "")

    @property
    def bare_name(self) -> str:
        """Name of the function alone."""
        return split_target(self.python)[1]

    @classmethod
    def from_name(cls, text: str) -> UserFunction:
        """Read `file.py:name` or `file.py:name >= threshold`, a relative file from here.

        Raises ValueError where the text is neither.
        """
        target, _, threshold = text.partition(" >= ")
        place, name = split_target(target)
        file = str(Path(place).resolve()) if place.endswith(".py") else place
        return cls(python=f"{file}:{name}", threshold=float(threshold or 1.0))


def make_verifier(function: UserFunction) -> Verifier:
    """Load the function and return it as a verifier; RecipeError if it cannot be used.

    A function that raises, hangs or returns what it should not gives undecided outcomes.
    """
    kind = WorkerKind(
        name=function.name,
        module="posttrain.rewards.python_worker",
        memory_bytes=function.memory_mib * 2**20,
        own_code=function.python,
    )
    form = _load(kind, function)

    def check(prompt: Prompt) -> str | None:
        lacking = [name for name in form.required if name not in _values(prompt)]
        return f"the row has no column {', '.join(lacking)}" if lacking else None

    def verify(prompt: Prompt, text: str) -> Outcome:
        return _call(kind, function, prompt, [text])[0]

    def verify_batch(pairs: Sequence[tuple[Prompt, str]]) -> list[Outcome]:
        return _call(kind, function, pairs[0][0], [text for _, text in pairs])

    return Verifier(
        name=function.name,
        summary="a function of your own",
        takes="what the function reads",
        verify=verify,
        check=check,
        verify_batch=verify_batch if form.is_batch else None,
        batch="prompt",
        reference_from="optional",
        columns=form.columns,
        is_open=True,
        reward_hacks={},
    )


def _load(kind: WorkerKind, function: UserFunction) -> Form:
    found = loaded(kind)
    if "error" in found:
        raise RecipeError(
            f"{function.name}: {found['error']}\n{found['traceback']}".rstrip(),
            hint=f"see whether `python -c '{_import_statement(function.python)}'` works",
        )
    return Form(**found)


def _import_statement(target: str) -> str:
    place, name = split_target(target)
    if place.endswith(".py"):
        return f'import runpy; runpy.run_path("{place}")["{name}"]'
    return f"from {place} import {name}"


def _call(
    kind: WorkerKind, function: UserFunction, prompt: Prompt, texts: Sequence[str]
) -> list[Outcome]:
    """Call the function once; return one outcome per completion."""
    request = {"completions": list(texts), "values": _values(prompt)}
    seconds = function.wall_seconds
    try:
        found = ask(kind, request, seconds=seconds, patience=seconds, most_times=1)
    except WorkerFailure as failure:
        return [undecided(failure.kind, failure.why)] * len(texts)
    if "error" in found:
        _tell(function, found["traceback"])
        why = f"raised {found['error']}\n{found['traceback']}".rstrip()
        return [undecided(found["kind"], why)] * len(texts)
    return [_outcome(result, function.threshold) for result in found["results"]]


def _tell(function: UserFunction, said: str) -> None:
    """Show the first traceback of the function; every outcome holds its own."""
    if function.python not in _told:
        _told.add(function.python)
        note(f"{function.name} raised, and its answers are undecided:\n{said}")


def _values(prompt: Prompt) -> dict[str, Any]:
    columns = cast("Mapping[str, Any]", prompt.meta.get(COLUMNS, {}))
    return {**columns, "prompt": prompt.messages, "reference": prompt.reference}


def _outcome(result: Mapping[str, Any], threshold: float) -> Outcome:
    if "bad" in result:
        return undecided("verifier_failed", result["bad"])
    if "outcome" in result:
        return Outcome(**result["outcome"])
    if "passed" in result:
        passed = bool(result["passed"])
        kind: OutcomeKind = "passed" if passed else "wrong"
        return Outcome(passed=passed, score=float(passed), why=f"returned {passed}", kind=kind)
    value = float(result["score"])
    passed = value >= threshold
    return Outcome(
        passed=passed,
        score=min(1.0, max(0.0, value)),
        why=f"returned {value:g}, passes from {threshold:g}",
        kind="passed" if passed else "below_threshold",
        parts={"returned": value},
    )
