"""Tests as JSON from tests as code, HumanEval's for example, by watching a solution pass them.

`check(candidate)` functions say pass or fail by assertions, which a candidate could get at. Run
once around a recorder of a known solution they give inputs and outputs instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.rewards import sandbox
from posttrain.rewards.code_reference import MOST_EXPECTED_BYTES
from posttrain.rewards.sandbox.base import Limits

FLOAT_TOLERANCE = 1e-6
"""What HumanEval's own assertions allow."""
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
    """The reference, as JSON, of a problem with HumanEval's fields.

    `prompt` becomes the prefix that a completion continues; `canonical_solution`, `test` and
    `entry_point` are run in the sandbox. At most 200 different calls are kept. Raises ValueError
    where the solution fails its own check, calls nothing, or gives what JSON cannot carry.
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
