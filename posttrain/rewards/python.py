"""Verifier `{python: my_rewards.py:score}`: a function of the user's own decides.

The function runs in worker processes that are forked from one that has loaded it, with a limit of
time and memory: a boundary against accidents, not a sandbox. It takes one completion,
`score(completion, reference, *, prompt, <column>)`, or all completions of a prompt at once in TRL's
form, `score(completions, <column>, **kwargs)`; either may be async. Arguments other than the
completion are passed by name: `prompt`, `reference` and columns of the data row.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import Field, field_validator

from posttrain.errors import RecipeError
from posttrain.progress import note
from posttrain.records import Outcome, OutcomeKind, Prompt
from posttrain.rewards.python_source import Form, form_of, split_target
from posttrain.rewards.verifier import Verifier, undecided
from posttrain.rewards.workers import WorkerFailure, WorkerKind, ask, loaded
from posttrain.spec import Spec

COLUMNS = "columns"
"""Key in a prompt's meta: the columns of its data row that the function reads."""
_MAX_TRACEBACK = 2000
_told: set[str] = set()


class PythonFunction(Spec):
    """A function of your own; the recipe then runs your code on this machine."""

    python: str
    """`file.py:name`, the file relative to the recipe, or `package.module:name`."""
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
    def function(self) -> str:
        """The target without the file's folder."""
        place, name = split_target(self.python)
        return f"{Path(place).name}:{name}" if place.endswith(".py") else self.python


class PythonVerifier(PythonFunction):
    """A function of your own that decides answers: bool, or a number from `threshold` on."""

    threshold: float = 1.0
    """Score from which an answer passes, where the function returns a number."""

    @property
    def name(self) -> str:
        """What prompts, tables and the report call it; the same wherever the file is moved.

        >>> PythonVerifier(python="rewards/mine.py:score", threshold=0.5).name
        'mine.py:score >= 0.5'
        """
        return self.function + (f" >= {self.threshold:g}" if self.threshold != 1.0 else "")

    @classmethod
    def from_name(cls, text: str) -> PythonVerifier:
        """Read `file.py:name` or `file.py:name >= threshold`, a relative file from here.

        Raises ValueError where the text is neither.
        """
        target, _, threshold = text.partition(" >= ")
        place, name = split_target(target)
        file = str(Path(place).resolve()) if place.endswith(".py") else place
        return cls(python=f"{file}:{name}", threshold=float(threshold or 1.0))


def make_verifier(spec: PythonVerifier) -> Verifier:
    """Load the function and return it as a verifier; RecipeError where it cannot be used."""
    function = LoadedFunction(spec)
    form = function.form

    def verify(prompt: Prompt, text: str) -> Outcome:
        return function.call(prompt, [text], spec.threshold)[0]

    def verify_batch(pairs: Sequence[tuple[Prompt, str]]) -> list[Outcome]:
        return function.call(pairs[0][0], [text for _, text in pairs], spec.threshold)

    return Verifier(
        name=spec.name,
        summary="a function of your own",
        takes="what the function reads",
        verify=verify,
        check=function.missing,
        verify_batch=verify_batch if form.is_batch else None,
        batch="prompt",
        reference_from="optional",
        columns=form.columns,
        is_open=True,
        reward_hacks={},
    )


class LoadedFunction:
    """A user's function in worker processes of its own."""

    def __init__(self, spec: PythonFunction) -> None:
        """Load it; RecipeError, with the traceback, where that fails or it cannot be called."""
        self.spec = spec
        self._kind = WorkerKind(
            name=spec.function,
            module="posttrain.rewards.python",
            memory_bytes=spec.memory_mib * 2**20,
            own_code=spec.python,
        )
        found = loaded(self._kind)
        if "error" in found:
            raise RecipeError(
                f"{spec.function}: {found['error']}\n{found['traceback']}".rstrip(),
                hint=f"see whether `python -c '{_import_statement(spec.python)}'` works",
            )
        self.form = Form(**found)

    def missing(self, prompt: Prompt) -> str | None:
        """Return which column the function needs and the prompt lacks; None where it has all."""
        lacking = [name for name in self.form.required if name not in _values(prompt)]
        return f"the row has no column {', '.join(lacking)}" if lacking else None

    def call(self, prompt: Prompt, texts: Sequence[str], threshold: float = 1.0) -> list[Outcome]:
        """Return one outcome per completion of the prompt; one call in batch form, else one each.

        A function that raises, hangs or returns what it should not gives undecided outcomes.
        """
        if not self.form.is_batch and len(texts) != 1:
            return [self.call(prompt, [text], threshold)[0] for text in texts]
        request = {"completions": list(texts), "values": _values(prompt)}
        seconds = self.spec.wall_seconds
        try:
            found = ask(self._kind, request, seconds=seconds, patience=seconds, most_times=1)
        except WorkerFailure as failure:
            return [undecided(failure.kind, failure.why)] * len(texts)
        if "error" in found:
            self._tell(found["traceback"])
            why = f"raised {found['error']}\n{found['traceback']}".rstrip()
            return [undecided(found["kind"], why)] * len(texts)
        return [_outcome(result, threshold) for result in found["results"]]

    def _tell(self, said: str) -> None:
        """Show the first traceback of the function; every outcome holds its own."""
        if self.spec.python not in _told:
            _told.add(self.spec.python)
            note(f"{self.spec.function} raised, and its answers are undecided:\n{said}")


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


def _import_statement(target: str) -> str:
    place, name = split_target(target)
    if place.endswith(".py"):
        return f'import runpy; runpy.run_path("{place}")["{name}"]'
    return f"from {place} import {name}"


# ---- in the worker


class _Worker:
    function: Callable[..., Any]
    form: Form


def load_worker(target: str) -> dict[str, Any]:
    """Import the user's function; return its form, or the error and the traceback."""
    try:
        place, name = split_target(target)
        if place.endswith(".py"):
            # Modules beside the file are imported as when it runs as a script.
            sys.path.insert(0, str(Path(place).parent))
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        _Worker.function = getattr(module, name)
        _Worker.form = form_of(_signature(_Worker.function))
        return dataclasses.asdict(_Worker.form)
    except (Exception, SystemExit) as error:
        return _raised(error)


def _signature(function: Any) -> inspect.Signature:
    if not callable(function) or inspect.isclass(function):
        raise TypeError(f"not a function, but of type {type(function).__name__}")
    return inspect.signature(function)


def answer_request(request: dict[str, Any]) -> dict[str, Any]:
    """Call the function; return a result per completion, or the error and the traceback."""
    texts, values = request["completions"], request["values"]
    try:
        results = _call(texts, values)
    except (Exception, SystemExit) as error:
        return _raised(error)
    if not _Worker.form.is_batch:
        return {"results": [_encoded(results)]}
    try:
        listed = list(results)
    except TypeError:
        return {
            "results": [{"bad": f"returned {_described(results)} in place of a list"}] * len(texts)
        }
    if len(listed) != len(texts):
        bad = {"bad": f"returned {len(listed)} results for {len(texts)} completions"}
        return {"results": [bad] * len(texts)}
    return {"results": [_encoded(one) for one in listed]}


def _call(texts: Sequence[str], values: Mapping[str, Any]) -> Any:
    form = _Worker.form
    given = {name: values[name] for name in values if form.takes(name)}
    if form.is_batch:
        columns = {name: [value] * len(texts) for name, value in given.items() if name != "prompt"}
        if form.takes("prompts"):
            columns["prompts"] = [values["prompt"]] * len(texts)
        chats = [[{"role": "assistant", "content": text}] for text in texts]
        found = _Worker.function(completions=list(texts) if form.as_texts else chats, **columns)
    elif form.by_name:
        found = _Worker.function(completion=texts[0], **given)
    else:
        found = _Worker.function(texts[0], **given)
    return asyncio.run(_finished(found)) if inspect.isawaitable(found) else found


async def _finished(found: Any) -> Any:
    return await found


def _encoded(result: Any) -> dict[str, Any]:
    """Return a result as JSON values, or what is wrong with it."""
    if result is None:
        return {"bad": "returned None"}
    if isinstance(result, Outcome):
        return _encoded_outcome(result)
    if isinstance(result, bool) or type(result).__name__ in ("bool_", "bool"):
        return {"passed": bool(result)}
    if isinstance(result, str | bytes):
        return {"bad": f"returned {_described(result)}"}
    try:
        # Numbers of numpy and torch, too.
        number = float(result)
    except (TypeError, ValueError, RuntimeError):
        return {"bad": f"returned {_described(result)}"}
    return {"score": number} if math.isfinite(number) else {"bad": f"returned {number}"}


def _encoded_outcome(outcome: Outcome) -> dict[str, Any]:
    # Made by the user's code, whose types nobody checked.
    fields: dict[str, Any] = dataclasses.asdict(outcome)
    sound = (
        fields["passed"] in (True, False, None)
        and isinstance(fields["score"], int | float)
        and 0.0 <= fields["score"] <= 1.0
        and isinstance(fields["why"], str)
        and fields["kind"] in (None, *get_args(OutcomeKind))
    )
    if not sound:
        return {"bad": f"returned an Outcome with a field of the wrong type: {outcome!r:.200}"}
    kinds = {True: "passed", False: "wrong", None: None}
    return {"outcome": {**fields, "kind": fields["kind"] or kinds[fields["passed"]]}}


def _described(value: Any) -> str:
    return f"a {type(value).__name__} ({value!r:.60})"


def _raised(error: BaseException) -> dict[str, Any]:
    """Return an exception in words, its traceback without the frames of this file."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    lines = traceback.format_exception(type(error), error, frames)
    return {
        "error": f"{type(error).__name__}: {error}"[:300],
        "kind": "out_of_memory" if isinstance(error, MemoryError) else "verifier_failed",
        "traceback": "".join(lines).strip()[-_MAX_TRACEBACK:],
    }
