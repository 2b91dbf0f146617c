"""Verifier `instructions`: constraints on the form of a response, by lm-eval's IFEval checkers.

The reference is JSON text in IFEval's own form, `{"instruction_id_list": [...], "kwargs": [...]}`;
other keys of its rows are ignored. Passed means that every constraint is followed strictly.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any, cast

from posttrain.records import Outcome, Prompt
from posttrain.rewards.answers import brief
from posttrain.rewards.places import without_reasoning
from posttrain.rewards.verifier import Package, Verifier, undecided
from posttrain.rewards.workers import WorkerFailure, WorkerKind, ask

WALL_LIMIT = 5.0
"""Seconds for one response."""
_CHECK_LIMIT = 30.0
PACKAGE = Package(
    modules=("lm_eval", "langdetect", "nltk", "immutabledict"), install="posttrain[instructions]"
)
WORKER = WorkerKind(
    name="instructions",
    module="posttrain.rewards.instructions",
    package=PACKAGE,
    memory_bytes=3 << 30,
)


def _verify(prompt: Prompt, text: str) -> Outcome:
    """Pass where every constraint is followed strictly; the score is the share that is.

    Parts: `strict` and `loose`, the shares, and each constraint's strict result by number and name.
    """
    task = _read(prompt.reference)
    if isinstance(task, str):
        return undecided("bad_reference", task)
    asked, text = prompt.messages[-1]["content"], without_reasoning(text)
    request = {**task, "do": "check", "prompt": asked, "text": text}
    try:
        found = ask(WORKER, request, seconds=WALL_LIMIT)
    except WorkerFailure as failure:
        return undecided(failure.kind, failure.why)
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
        kind="constraint_not_met" if broken else "passed",
        parts={"strict": share, "loose": sum(loose) / len(loose), **each},
    )


def _check(prompt: Prompt) -> str | None:
    """Refuse constraints that the checkers do not know, and those that lack a value.

    Raises SetupError where lm-eval or what its checkers import is not installed.
    """
    PACKAGE.require("instructions")
    task = _read(prompt.reference)
    if isinstance(task, str):
        return task
    try:
        return ask(WORKER, {**task, "do": "check task"}, seconds=_CHECK_LIMIT)
    except WorkerFailure as failure:
        return f"the reference cannot be checked: {failure.why}"


def constraint_kinds() -> dict[str, dict[str, Any]]:
    """Return each kind of constraint: its `conflicts` with others, and why it is `unavailable`."""
    PACKAGE.require("instructions")
    return ask(WORKER, {"do": "kinds"}, seconds=_CHECK_LIMIT)


def _read(reference: str) -> dict[str, Any] | str:
    """Return the constraints of a reference, or the fault in it."""
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


# ---- in the worker

# Kinds whose checkers split text with nltk's punkt_tab, which is data of its own.
_NEED_PUNKT = frozenset(
    {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
)
_NO_PUNKT = (
    "needs nltk's punkt_tab data, which is not here: python -m nltk.downloader punkt_tab, "
    "or pip install --no-deps llama-index-core, which carries it"
)


@functools.cache
def checkers() -> Any:
    """Import lm-eval's IFEval module, its language detector seeded; nothing is downloaded."""
    # Any rank but 0 leaves the download of punkt_tab to rank 0.
    os.environ["LOCAL_RANK"] = "1"
    langdetect = importlib.import_module("langdetect")
    nltk = importlib.import_module("nltk")
    langdetect.DetectorFactory.seed = 0
    carrier = importlib.util.find_spec("llama_index")
    for root in (carrier.submodule_search_locations or ()) if carrier else ():
        nltk.data.path.append(str(Path(root) / "core" / "_static" / "nltk_cache"))
    return importlib.import_module("lm_eval.tasks.ifeval.utils")


@functools.cache
def has_punkt() -> bool:
    """Return whether nltk finds punkt_tab."""
    checkers()
    nltk = importlib.import_module("nltk")
    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


def load_worker() -> None:
    """Import the checkers and the language profiles, which are read at the first use."""
    checkers().instructions_registry.instructions.langdetect.detect("so it is")


def answer_request(request: dict[str, Any]) -> Any:
    """Answer `kinds` (of constraints), `check task` (their fault, or None), or `check`.

    `check` gives the constraints that a response follows, strictly and loosely.
    """
    registry = checkers().instructions_registry
    if request["do"] == "kinds":
        conflicts = registry.conflict_make(
            {name: set(others) for name, others in registry.INSTRUCTION_CONFLICTS.items()}
        )
        return {
            name: {
                "conflicts": sorted(conflicts[name]),
                "unavailable": unavailable(name),
            }
            for name in registry.INSTRUCTION_DICT
        }
    names, kwargs = request["instruction_id_list"], request["kwargs"]
    if request["do"] == "check task":
        return misfit(registry, names, kwargs)
    if lacking := next((why for name in names if (why := unavailable(name))), None):
        raise LookupError(lacking)
    example = checkers().InputExample(
        key=0, instruction_id_list=names, prompt=request["prompt"], kwargs=kwargs
    )
    strict = checkers().test_instruction_following_strict(example, request["text"])
    loose = checkers().test_instruction_following_loose(example, request["text"])
    return {
        "strict": [bool(one) for one in strict.follow_instruction_list],
        "loose": [bool(one) for one in loose.follow_instruction_list],
    }


def unavailable(name: str) -> str | None:
    """Return why a kind of constraint cannot be checked here; None where it can."""
    return f"{name} {_NO_PUNKT}" if name in _NEED_PUNKT and not has_punkt() else None


def misfit(registry: Any, names: list[str], kwargs: list[dict[str, Any]]) -> str | None:
    """Return the fault in a list of constraints; None where each can be checked."""
    for name, given in zip(names, kwargs, strict=True):
        if name not in registry.INSTRUCTION_DICT:
            return f"lm-eval has no instruction {name!r}"
        if why := unavailable(name):
            return why
        given = {key: value for key, value in given.items() if value}
        checker = registry.INSTRUCTION_DICT[name](name)
        try:
            checker.build_description(**given)
            wanted = checker.get_instruction_args_keys()
            checker.check_following("A first answer. And more of it.")
        except Exception as error:
            return f"{name} does not take {given}: {type(error).__name__}: {error}"[:300]
        # Without a value the checker would draw one at random, another at every check.
        if missing := [key for key in wanted if key not in given and key != "prompt"]:
            return f"{name} lacks {', '.join(missing)}"
    return None


INSTRUCTIONS = Verifier(
    name="instructions",
    summary="constraints on the form",
    takes="JSON in IFEval's form",
    verify=_verify,
    check=_check,
    reference_from="column",
    reference_columns=("constraints", "instructions"),
    joint_columns=("instruction_id_list", "kwargs"),
    package=PACKAGE,
)
