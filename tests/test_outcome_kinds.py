"""Outcome.kind: each verifier names what it found, and every kind has a case that gives it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from posttrain import sandbox
from posttrain.records import Outcome, OutcomeKind, Prompt
from posttrain.rewards import math as math_verifier
from posttrain.rewards import use_judge, verify
from posttrain.rewards.verifier import undecided
from posttrain.rewards.workers import WorkerFailure
from posttrain.sandbox import SandboxSpec
from posttrain.sandbox.base import Limits, Run, SandboxFailure

linux = pytest.mark.skipif(sys.platform != "linux", reason="takes the Landlock sandbox")
FUNCTION = {"entry_point": "f", "tests": [{"args": [1], "expect": 1}]}
PROGRAM = {"tests": [{"stdin": "1", "stdout": "1"}]}
NO_COMMA = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
WRITE = "import os; os.write(1, {}); os._exit(0)"

ANSWERS: list[tuple[str, Any, str, OutcomeKind]] = [
    ("exact", "4", "4", "passed"),
    ("exact", "4", "5", "wrong"),
    ("exact", "4", "  ", "empty"),
    ("math", "4", "\\boxed{5}", "wrong"),
    ("math", "4 km", "\\boxed{4 kg}", "wrong"),
    ("math", "(1, 2)", "\\boxed{(2, 1)}", "wrong"),
    ("math", "4", "no idea", "no_answer"),
    ("math", "4", "\\boxed{4} or \\boxed{5}", "several_answers"),
    ("math", "4", "It is 4 or 5, I think.", "several_answers"),
    ("math", "4, 5", "\\boxed{4}", "too_few_answers"),
    ("math", "4", f"\\boxed{{{'1' * 2001}}}", "too_long"),
    ("math", "because the cat sat", "\\boxed{x+1}", "bad_reference"),
    ("choice", "B", "A", "wrong"),
    ("choice", "B", "perhaps", "no_answer"),
    ("choice", "B", "A or B", "several_answers"),
    ("choice", "{", "A", "bad_reference"),
    ("code", "{", "x = 1", "bad_reference"),
    ("reasoning_gym", "4", "4", "verifier_failed"),
]
PROGRAMS: list[tuple[Any, str, OutcomeKind]] = [
    (FUNCTION, "def f(x): return x", "passed"),
    (FUNCTION, "def f(x): return x + 1", "wrong"),
    (FUNCTION, "def f(x): raise KeyError", "raised"),
    (FUNCTION, "def f(x): raise MemoryError", "out_of_memory"),
    (FUNCTION, "def f(x): return bytearray(2**30)", "out_of_memory"),
    (FUNCTION, "def f(x):\n    while True: pass", "timeout"),
    (FUNCTION, "g = 1", "does_not_load"),
    (FUNCTION, "def f(x:", "does_not_load"),
    (FUNCTION, "raise MemoryError", "out_of_memory"),
    (FUNCTION, "import os; os._exit(0)", "ended_early"),
    (FUNCTION, "import os; os.abort()", "killed"),
    (FUNCTION, "import gc, os, json\nos.write(3, b'{}\\n')", "malformed_output"),
    (PROGRAM, "print(1)", "passed"),
    (PROGRAM, "print(2)", "wrong"),
    (PROGRAM, "raise KeyError", "raised"),
    (PROGRAM, "raise SystemExit(3)", "ended_early"),
    (PROGRAM, "import time; time.sleep(9)", "timeout"),
    (PROGRAM, "x = bytearray(2**30)", "out_of_memory"),
    (PROGRAM, WRITE.format("b'x' * 10**6"), "too_much_output"),
    (PROGRAM, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed"),
    (
        PROGRAM,
        "import os, time\nfor n in range(4000): os.mkdir(str(n))\ntime.sleep(9)",
        "too_many_files",
    ),
]
ELSEWHERE: set[OutcomeKind] = {
    *("truncated", "below_threshold", "no_opinion", "opener_only", "constraint_not_met"),
    *("verifier_crashed", "sandbox_failed"),
}
"""Kinds of the single tests below."""


def prompt(verifier: str, reference: Any) -> Prompt:
    text = reference if isinstance(reference, str) else json.dumps(reference)
    return Prompt.make(
        messages=[{"role": "user", "content": "?"}],
        reference=text,
        verifier=verifier,
        capability="c",
        meta={"family": "no_such", "entry": {}} if verifier == "reasoning_gym" else {},
    )


@pytest.fixture(scope="module")
def in_landlock() -> Iterator[None]:
    sandbox.use(SandboxSpec(kind="landlock", wall_seconds=2.0))
    yield
    sandbox.use(SandboxSpec())


def test_every_kind_has_a_case() -> None:
    covered = {kind for *_, kind in (*ANSWERS, *PROGRAMS)}
    assert covered | ELSEWHERE == set(get_args(OutcomeKind))


@pytest.mark.parametrize(("verifier", "reference", "text", "kind"), ANSWERS)
def test_an_answer_gives_its_kind(
    verifier: str, reference: Any, text: str, kind: OutcomeKind
) -> None:
    outcome = verify(prompt(verifier, reference), text)
    assert outcome.kind == kind, outcome
    assert (outcome.passed is True) == (kind == "passed")
    assert (outcome.passed is None) == (kind in ("bad_reference", "verifier_failed"))


@linux
@pytest.mark.usefixtures("in_landlock")
@pytest.mark.parametrize(("reference", "program", "kind"), PROGRAMS)
def test_a_program_gives_its_kind(reference: Any, program: str, kind: OutcomeKind) -> None:
    outcome = verify(prompt("code", reference), program)
    assert outcome.kind == kind, outcome
    assert outcome.passed is (kind == "passed")


def test_a_truncated_answer_gives_truncated() -> None:
    assert verify(prompt("exact", "4"), "4", truncated=True).kind == "truncated"


def test_a_constraint_that_is_not_followed_gives_its_kind() -> None:
    pytest.importorskip("lm_eval")
    assert verify(prompt("instructions", NO_COMMA), "one, two").kind == "constraint_not_met"
    assert verify(prompt("instructions", NO_COMMA), "one and two").kind == "passed"


def test_an_opener_fails_before_the_judge_and_other_answers_keep_its_kind() -> None:
    with use_judge(lambda pairs: [undecided("no_opinion", "none") for _ in pairs]):
        assert verify(prompt("judge", ""), "Thought process:").kind == "opener_only"
        assert verify(prompt("judge", ""), "Paris.").kind == "no_opinion"


@pytest.mark.parametrize("kind", ["timeout", "verifier_crashed", "out_of_memory"])
def test_a_worker_that_fails_gives_the_kind_of_its_failure(
    kind: OutcomeKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise WorkerFailure(kind, "why")

    monkeypatch.setattr(math_verifier, "ask", fail)
    outcome = verify(prompt("math", "x"), "\\boxed{y}")
    assert (outcome.passed, outcome.kind, outcome.why) == (None, kind, "why")


def test_a_sandbox_that_fails_gives_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        kind = fingerprint = slow_start = "broken"

        def run(self, program: str, stdin: bytes, limits: Limits) -> Run:
            raise SandboxFailure("the helper died")

        def close(self) -> None:
            pass

    monkeypatch.setattr(sandbox, "_current", Broken())
    assert verify(prompt("code", FUNCTION), "x = 1").kind == "sandbox_failed"


def test_a_label_says_what_is_undecided_and_what_was_not_recorded() -> None:
    def label(passed: bool | None, kind: OutcomeKind | None) -> str:
        return Outcome(passed=passed, score=0.0, why="", kind=kind).label

    assert label(False, "timeout") == "timeout"
    assert label(None, "timeout") == "undecided: timeout"
    assert label(False, None) == "not recorded"
    assert label(True, None) == "passed"
