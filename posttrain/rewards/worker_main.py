"""What runs inside a worker process: one JSON request a line in, one JSON answer a line out.

Started by path, so it imports nothing of posttrain. argv[1] says which package it serves, argv[2]
is the descriptor of the socket on which it is asked to fork workers.
"""

# The packages served here ship no types.
# pyright: basic

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import gc
import importlib.util
import json
import logging
import os
import re
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Bytes of address space, well above what a package takes (0.4 to 1.8 GiB, measured) and well below
# what a machine has: an answer that wants more gets a MemoryError.
_MEMORY_LIMITS = {"math": 1 << 30, "reasoning_gym": 4 << 30, "instructions": 3 << 30}
# Families that `eval` the answer they score: the answer may be a literal, nothing more.
_LITERAL_FAMILIES = frozenset(
    {"string_insertion", "spiral_matrix", "number_sorting", "binary_matrix", "n_queens"}
)
# Families that give the answer to sympy.parse_expr, which evaluates any Python: formulas only.
_FORMULA_FAMILIES = frozenset(
    {
        "countdown",
        "puzzle24",
        "simple_integration",
        "intermediate_integration",
        "polynomial_multiplication",
    }
)
_FORMULA = re.compile(r"[\w\s+\-*/^().,=]*")
_FUNCTIONS = r"a?(sin|cos|tan)h?|sec|csc|cot|exp|log|ln|sqrt|pi|Abs|Integral"


# ---- reasoning_gym


def encode(value: Any) -> Any:
    """JSON values from which `decode` makes an equal value: tuples and odd keys are marked."""
    if isinstance(value, tuple):
        return {"$tuple": [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: encode(item) for key, item in value.items()}
        return {"$dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if hasattr(value, "item") and type(value).__module__ == "numpy":
        return value.item()
    return value


def decode(value: Any) -> Any:
    """The value that `encode` was given."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        if "$tuple" in value:
            return tuple(decode(item) for item in value["$tuple"])
        if "$dict" in value:
            return {decode(key): decode(item) for key, item in value["$dict"]}
        return {key: decode(item) for key, item in value.items()}
    return value


@functools.lru_cache(maxsize=64)
def family_dataset(family: str, config: str, seed: int, size: int) -> Any:
    """The family's data set; lists become tuples where its configuration holds tuples."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    kinds = {field.name: str(field.type) for field in dataclasses.fields(DATASETS[family][1])}
    values = {
        key: tuple(value) if isinstance(value, list) and "uple" in kinds.get(key, "") else value
        for key, value in json.loads(config).items()
    }
    dataset = reasoning_gym.create_dataset(family, seed=seed, size=size, **values)
    if family in _LITERAL_FAMILIES:
        vars(sys.modules[type(dataset).__module__])["eval"] = ast.literal_eval
    return dataset


def is_formula(answer: str) -> bool:
    """Whether a text holds only digits, operators, single letters and known functions."""
    names = re.findall(r"[^\W\d]\w*", answer)
    return (
        _FORMULA.fullmatch(answer) is not None
        and re.search(r"\.\s*[^\W\d]", answer) is None
        and all(len(name) == 1 or re.fullmatch(_FUNCTIONS, name) for name in names)
    )


def answer_reasoning_gym(request: dict[str, Any]) -> Any:
    """`families`, `levels`, `level`, `make`, `score`, as posttrain.rewards.reasoning_gym asks."""
    if request["do"] == "families":
        from reasoning_gym.factory import DATASETS

        return {
            name: [f.name for f in dataclasses.fields(config) if f.name not in ("seed", "size")]
            for name, (_, config) in DATASETS.items()
            if name != "composite"
        }
    if request["do"] == "levels":
        return family_levels(request["family"])
    if request["do"] == "level":
        return configuration_at(request["family"], request["level"])
    family, config = request["family"], json.dumps(request["config"], sort_keys=True)
    if request["do"] == "make":
        dataset = family_dataset(family, config, request["seed"], request["size"])
        return [made_entry(dataset, index) for index in range(request["size"])]
    dataset = family_dataset(family, config, 0, 1)
    answers = request["answers"]
    if family in _FORMULA_FAMILIES:
        answers = [answer for answer in answers if is_formula(answer)]
    return max((score(dataset, answer, request["entry"]) for answer in answers), default=0.0)


def attribute_keys(attribute: Any) -> list[str]:
    """The configuration keys that an attribute of a curriculum sets."""
    if hasattr(attribute, "field_name"):
        return [attribute.field_name]
    return [attribute.lower_field_name, attribute.upper_field_name]


def family_levels(family: str) -> dict[str, Any]:
    """The attributes of a family's curriculum; empty where it has none."""
    from reasoning_gym.factory import create_curriculum, has_curriculum

    if not has_curriculum(family):
        return {}
    return {
        name: {"levels": encode(attribute.levels), "keys": attribute_keys(attribute)}
        for name, attribute in create_curriculum(family).attributes.items()
    }


def configuration_at(family: str, level: int) -> dict[str, Any]:
    """What the family's curriculum sets at one level of all its attributes."""
    from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode
    from reasoning_gym.factory import create_curriculum

    curriculum = create_curriculum(family)
    curriculum.set_global_level(level)
    context = DefaultCurriculumContext(mode=RangeAttributeMode.UPPER_BOUND)
    config = curriculum.generate_configuration(context=context)
    keys = [key for a in curriculum.attributes.values() for key in attribute_keys(a)]
    # Tuples become lists, as in a recipe; family_dataset turns them back.
    return json.loads(json.dumps({key: getattr(config, key) for key in keys}))


def made_entry(dataset: Any, index: int) -> dict[str, Any]:
    """One question, or the error with which the family failed to make it."""
    try:
        entry = dataset[index]
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    answer = entry["answer"]
    answer = answer if answer is None or isinstance(answer, str) else str(answer)
    return {"question": entry["question"], "answer": answer, "entry": encode(entry)}


def score(dataset: Any, answer: str, entry: Any) -> float:
    """The family's score; 0 for an answer that its scorer chokes on while it can read its own."""
    try:
        return float(dataset.score_answer(answer, decode(entry)))
    except (Exception, SystemExit):
        own = decode(entry)
        if isinstance(own["answer"], str) and dataset.score_answer(own["answer"], own) >= 1.0:
            return 0.0
        raise


# ---- the loop


def beside(name: str) -> Any:
    """The module in the file next to this one, which is on no import path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Get warm, then fork a worker for every connection that the parent hands over."""
    kind, control = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Children that end are reaped by the system.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    answer: Callable[[dict[str, Any]], Any]
    try:
        if kind == "reasoning_gym":
            import reasoning_gym  # noqa: F401

            answer = answer_reasoning_gym
        else:
            served = beside(f"worker_{kind}")
            answer = getattr(served, f"answer_{kind}")
            # The first one loads what all later ones need, before the limits hold.
            answer({"do": "parse", "text": "1"})
    except Exception as error:
        say(control, {"error": f"{type(error).__name__}: {error}"})
        return
    gc.freeze()
    say(control, {"ready": kind})
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        with socket.socket(fileno=descriptors[0]) as connection:
            try:
                pid = os.fork()
            except OSError as error:
                say(control, {"error": str(error)})
                continue
            if pid == 0:
                control.close()
                serve(connection, answer, _MEMORY_LIMITS[kind])
                os._exit(0)
        say(control, {"pid": pid})


def serve(
    connection: socket.socket, answer: Callable[[dict[str, Any]], Any], memory_limit: int
) -> None:
    """Answer requests until the connection ends."""
    for what, most in (
        (resource.RLIMIT_AS, memory_limit),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        # Some systems refuse a limit; the wall limit still holds.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (most, resource.getrlimit(what)[1]))
    for line in connection.makefile("rb"):
        request = json.loads(line)
        # Should the parent be gone, a hanging request still ends, with the process.
        signal.alarm(int(request["seconds"]) + 2)
        try:
            reply = {"value": answer(request)}
        except (Exception, SystemExit) as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        signal.alarm(0)
        say(connection, reply)


def say(connection: socket.socket, reply: dict[str, Any]) -> None:
    """One JSON line."""
    connection.sendall(json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
