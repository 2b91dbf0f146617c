"""The worker of a user's own function: it loads the function and calls it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from posttrain.records import Outcome, OutcomeKind
from posttrain.rewards.python_source import Form, form_of, split_target

_KINDS = (None, *get_args(OutcomeKind))
_MAX_TRACEBACK = 2000


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
    if isinstance(result, str | bytes):
        return {"bad": f"returned {_described(result)}"}
    with contextlib.suppress(TypeError):
        return {"passed": _truth(result)}
    try:
        # Numbers of numpy and torch, too.
        number = float(result)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return {"bad": f"returned {_described(result)}"}
    return {"score": number} if math.isfinite(number) else {"bad": f"returned {number}"}


def _encoded_outcome(outcome: Outcome) -> dict[str, Any]:
    # Made by the user's code, whose types nobody checked.
    kinds = {True: "passed", False: "wrong", None: None}
    try:
        passed = None if outcome.passed is None else _truth(outcome.passed)
        sound = Outcome(
            passed=passed,
            score=float(outcome.score),
            why=str(outcome.why),
            parts={str(name): float(value) for name, value in outcome.parts.items()},
            extracted=str(outcome.extracted),
            kind=outcome.kind or kinds[passed],  # pyright: ignore[reportArgumentType]
        )
    except (TypeError, ValueError, AttributeError):
        sound = None
    if sound is None or not 0.0 <= sound.score <= 1.0 or sound.kind not in _KINDS:
        return {"bad": f"returned an Outcome with a field of the wrong type: {outcome!r:.200}"}
    return {"outcome": dataclasses.asdict(sound)}


def _truth(value: Any) -> bool:
    """Return a bool of Python or numpy as Python's; TypeError for anything else."""
    if not isinstance(value, bool) and type(value).__name__ not in ("bool_", "bool"):
        raise TypeError(f"{value!r} is no bool")
    return bool(value)


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
