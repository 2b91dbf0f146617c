"""The tests of a code problem: read from the JSON of a reference, or recorded from test code."""

from __future__ import annotations

import base64
import contextlib
import json
import pickletools
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from posttrain import sandbox
from posttrain.rewards.values import decode
from posttrain.sandbox.base import Limits

LANGUAGES = ("python",)
MOST_TESTS = 1000
MOST_BYTES = 2**20
MOST_EXPECTED_BYTES = 48 * 2**10
"""Size of all expected results of a function: well within the output that a sandbox allows."""
DEFAULT_TOLERANCE = 1e-9
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)?")
_LIMITS = {"wall_seconds": 60.0, "memory_mib": 4096.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class FunctionTest:
    """A call and its result."""

    args: list[Any]
    kwargs: dict[str, Any]
    expect: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramTest:
    """A program's input and output."""

    stdin: str
    stdout: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FunctionTests:
    """`{"entry_point": "f", "tests": [{"args", "kwargs", "expect"}], "prefix"}`."""

    entry_point: str
    tests: list[FunctionTest]
    prefix: str = ""
    float_tolerance: float = DEFAULT_TOLERANCE
    limits: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramTests:
    """`{"tests": [{"stdin", "stdout"}]}`."""

    tests: list[ProgramTest]
    prefix: str = ""
    limits: dict[str, float] = field(default_factory=dict[str, float])


def read_reference(text: str) -> FunctionTests | ProgramTests:
    """Parse and check the tests. Raises ValueError that names the fault."""
    if not text.strip():
        raise ValueError("the reference is empty: code needs tests as JSON")
    if len(text) > MOST_BYTES:
        raise ValueError(f"the tests take more than {MOST_BYTES >> 20} MiB")
    if looks_pickled(text):
        raise ValueError("the tests look like a pickle, which can run code when read: give JSON")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the tests are not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("the tests must be a JSON object with the key tests")
    value = cast(dict[str, Any], found)
    language = value.get("language", "python")
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r} cannot be run; there is {', '.join(LANGUAGES)}")
    tests = value.get("tests")
    if not isinstance(tests, list) or not tests:
        raise ValueError("tests must be a list with at least one test")
    rows = cast(list[Any], tests)
    if len(rows) > MOST_TESTS:
        raise ValueError(f"{len(rows)} tests; at most {MOST_TESTS} are run")
    prefix, limits = _text(value, "prefix"), _limits(value.get("limits", {}))
    if "entry_point" not in value:
        _only(value, {"tests", "language", "prefix", "limits"})
        programs = [_program(n, row) for n, row in enumerate(rows, 1)]
        return ProgramTests(tests=programs, prefix=prefix, limits=limits)
    _only(value, {"tests", "language", "prefix", "limits", "entry_point", "float_tolerance"})
    name = value["entry_point"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"entry_point must be a function's name, not {name!r}")
    tolerance = value.get("float_tolerance", DEFAULT_TOLERANCE)
    if type(tolerance) not in (int, float) or not 0 <= tolerance < 1:
        raise ValueError("float_tolerance must be a number from 0 to 1")
    functions = [_function(n, row) for n, row in enumerate(rows, 1)]
    if len(json.dumps([row["expect"] for row in rows])) > MOST_EXPECTED_BYTES:
        raise ValueError(f"the expected results take more than {MOST_EXPECTED_BYTES >> 10} KiB")
    return FunctionTests(
        entry_point=name,
        tests=functions,
        prefix=prefix,
        float_tolerance=tolerance,
        limits=limits,
    )


def looks_pickled(text: str) -> bool:
    """Return whether a text is a pickle, plain or in base64, perhaps compressed; unpickles nothing.

    >>> looks_pickled("gASVCgAAAAAAAABdlChLAUsCZS4="), looks_pickled('{"tests": []}')
    (True, False)
    """
    if text.lstrip()[:1] == "{":
        return False
    raw = [text.encode("latin-1", "ignore")]
    with contextlib.suppress(ValueError, zlib.error):
        raw.append(base64.b64decode(text.strip(), validate=True))
        # 47: with a header of zlib or of gzip.
        raw.append(zlib.decompressobj(wbits=47).decompress(raw[-1], MOST_BYTES))
    return any(_is_pickle(data) for data in raw)


def _is_pickle(data: bytes) -> bool:
    """Return whether bytes are a pickle's operations up to its end; they are read, not run."""
    if data[:1] == b"\x80" and data[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return True
    try:
        return any(operation.code == "." for operation, _, _ in pickletools.genops(data))
    except Exception:
        # On other bytes it raises ValueError, and more than its documentation lists.
        return False


def _function(number: int, row: Any) -> FunctionTest:
    test = _test(number, row, {"args", "kwargs", "expect"})
    if "expect" not in test:
        raise ValueError(f"test {number} lacks expect")
    args: Any = test.get("args", [])
    kwargs: Any = test.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise ValueError(f"test {number}: args must be a list, kwargs an object")
    try:
        return FunctionTest(
            args=decode(cast(Any, args)),
            kwargs=decode(cast(Any, kwargs)),
            expect=decode(test["expect"]),
        )
    except ValueError as error:
        raise ValueError(f"test {number}: {error}") from None


def _program(number: int, row: Any) -> ProgramTest:
    test = _test(number, row, {"stdin", "stdout"})
    if not isinstance(test.get("stdout"), str) or not isinstance(test.get("stdin", ""), str):
        raise ValueError(f"test {number}: stdin and stdout must be text")
    return ProgramTest(stdin=test.get("stdin", ""), stdout=test["stdout"])


def _test(number: int, row: Any, keys: set[str]) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"test {number} must be an object with {', '.join(sorted(keys))}")
    test = cast(dict[str, Any], row)
    if unknown := sorted(set(test) - keys):
        raise ValueError(f"test {number} has the unknown key {unknown[0]}")
    return test


def _only(value: dict[str, Any], keys: set[str]) -> None:
    if unknown := sorted(set(value) - keys):
        raise ValueError(f"the tests have the unknown key {unknown[0]}")


def _text(value: dict[str, Any], key: str) -> str:
    found = value.get(key, "")
    if not isinstance(found, str):
        raise ValueError(f"{key} must be text")
    return found


def _limits(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise ValueError("limits must be an object")
    found = cast(dict[str, Any], value)
    for key, number in found.items():
        if key not in _LIMITS:
            raise ValueError(f"limits has the unknown key {key}; there are {', '.join(_LIMITS)}")
        if type(number) not in (int, float) or not 0 < number <= _LIMITS[key]:
            raise ValueError(f"limits.{key} must lie in 0..{_LIMITS[key]:g}")
    return {key: float(number) for key, number in found.items()}


# ---- tests as JSON from tests as code, HumanEval's for example

FLOAT_TOLERANCE = 1e-6
"""Difference that HumanEval's own assertions allow."""
MOST_CALLS = 200
_RECORDER = """
import random, sys
random.seed(0)
job = json.loads(sys.stdin.buffer.read())
space = {"__name__": "checked"}
exec(compile(job["program"], "solution.py", "exec"), space)
solution, records, seen = space[job["entry_point"]], [], set()

def recorder(*args, **kwargs):
    given = {"args": encode(list(args)), "kwargs": encode(kwargs)}
    result = solution(*args, **kwargs)
    key = json.dumps(given)
    if key not in seen:
        seen.add(key)
        records.append({**given, "expect": encode(result)})
    return result

exec(compile(job["check"], "check.py", "exec"), space)
space["check"](recorder)
sys.__stdout__.write("\\n" + json.dumps(records))
"""


def reference_from_check(problem: Mapping[str, str]) -> str:
    """Return the reference, as JSON, of a problem with HumanEval's fields.

    A `check(candidate)` function says pass or fail by assertions, which a candidate could reach.
    Run once in the sandbox around a recorder of the known solution, it gives inputs and outputs
    instead. `prompt` becomes the prefix that a completion continues; at most 200 different calls
    are kept. Raises ValueError where the solution fails its own check, where the check calls
    nothing, and where a value cannot be written as JSON.
    """
    program = problem["prompt"] + problem["canonical_solution"]
    job = {"program": program, "check": problem["test"], "entry_point": problem["entry_point"]}
    values = Path(__file__).with_name("values.py").read_text()
    recorder = f"{values}\nimport json\n{_RECORDER}"
    limits = Limits(wall_seconds=20.0, output_bytes=2**20)
    run = sandbox.current().run(recorder, json.dumps(job).encode(), limits)
    if not run.ok:
        said = run.stderr.strip().rpartition("\n")[2] or run.reason
        raise ValueError(f"{problem['entry_point']} does not pass its own check: {said}"[:300])
    records: list[dict[str, Any]] = json.loads(run.stdout.rpartition(b"\n")[2])
    if not records:
        raise ValueError(f"the check never calls {problem['entry_point']}")
    tests: list[dict[str, Any]] = []
    size = 0
    for record in records[:MOST_CALLS]:
        size += len(json.dumps(record["expect"])) + 2
        if size > MOST_EXPECTED_BYTES:
            break
        tests.append(record)
    if not tests or '"$object"' in json.dumps(tests):
        raise ValueError(f"{problem['entry_point']} takes or gives what tests cannot hold")
    return json.dumps(
        {
            "entry_point": problem["entry_point"],
            "prefix": problem["prompt"],
            "tests": tests,
            "float_tolerance": FLOAT_TOLERANCE,
        }
    )
