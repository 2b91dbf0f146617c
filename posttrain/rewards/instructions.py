"""Verifier `instructions`: constraints on the form of a response, by lm-eval's IFEval checkers.

The reference is JSON text in IFEval's own form, `{"instruction_id_list": [...], "kwargs": [...]}`;
other keys of its rows are passed by. Passed means that every constraint is followed strictly.
"""

from __future__ import annotations

import importlib.util
import json
from typing import Any, cast

from posttrain.errors import EnvironmentFault
from posttrain.records import Outcome, Prompt
from posttrain.rewards.answers import brief
from posttrain.rewards.workers import WorkerFailure, ask

WALL_LIMIT = 5.0
"""Seconds for one response."""
_FITS_LIMIT = 30.0
_PACKAGES = ("lm_eval", "langdetect", "nltk", "immutabledict")


def verify_instructions(prompt: Prompt, text: str) -> Outcome:
    """Pass when every constraint is followed strictly; score is the share that is.

    Parts: `strict` and `loose`, the shares, and each constraint's strict result by number and name.
    """
    task = _read(prompt.reference)
    if isinstance(task, str):
        return Outcome(passed=None, score=0.0, why=task)
    request = {**task, "do": "check", "prompt": prompt.messages[-1]["content"], "text": text}
    try:
        found = ask("instructions", request, seconds=WALL_LIMIT)
    except WorkerFailure as failure:
        return Outcome(passed=None, score=0.0, why=failure.why)
    strict: list[bool] = found["strict"]
    loose: list[bool] = found["loose"]
    names: list[str] = task["instruction_id_list"]
    broken = [name for name, followed in zip(names, strict, strict=True) if not followed]
    share = sum(strict) / len(strict)
    each = {f"{i} {name}": float(strict[i]) for i, name in enumerate(names)}
    return Outcome(
        passed=not broken,
        score=share,
        why=f"not followed: {brief(', '.join(broken), 200)}" if broken else "all followed",
        parts={"strict": share, "loose": sum(loose) / len(loose), **each},
    )


def fits_instructions(prompt: Prompt) -> str | None:
    """The reference must hold constraints that the checkers know, with every value they need.

    Raises EnvironmentFault where lm-eval and what its checkers import are not installed.
    """
    require_checkers()
    task = _read(prompt.reference)
    if isinstance(task, str):
        return task
    try:
        return ask("instructions", {**task, "do": "fits"}, seconds=_FITS_LIMIT)
    except WorkerFailure as failure:
        return f"the reference cannot be checked: {failure.why}"


def require_checkers() -> None:
    """Raise EnvironmentFault where the checkers cannot be imported."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentFault(
            f"the instructions verifier needs {', '.join(missing)}",
            hint='pip install "posttrain[instructions]"',
        )


def constraint_kinds() -> dict[str, dict[str, Any]]:
    """Every kind of constraint: `conflicts`, kinds it does not go with, and why `unavailable`."""
    require_checkers()
    return ask("instructions", {"do": "kinds"}, seconds=_FITS_LIMIT)


def _read(reference: str) -> dict[str, Any] | str:
    """The constraints of a reference, or what is wrong with it."""
    try:
        value: Any = json.loads(reference)
    except (ValueError, RecursionError) as error:
        return f"the reference is no JSON: {error}"
    if not isinstance(value, dict):
        return "the reference is no JSON object"
    task = cast("dict[str, Any]", value)
    names: Any = task.get("instruction_id_list")
    kwargs: Any = task.get("kwargs")
    if not isinstance(names, list) or not isinstance(kwargs, list):
        return "the reference needs the lists instruction_id_list and kwargs"
    names, kwargs = cast("list[Any]", names), cast("list[Any]", kwargs)
    if not names or len(names) != len(kwargs):
        return f"{len(names)} instructions with {len(kwargs)} kwargs: as many, at least one"
    if not all(isinstance(name, str) for name in names):
        return "instruction_id_list must hold texts"
    if not all(isinstance(one, dict) for one in kwargs):
        return "kwargs must hold objects"
    return {"instruction_id_list": names, "kwargs": kwargs}
