"""Verifier `code`: the program in an answer gives the right outputs, run in a sandbox.

The reference is JSON: functions `{"entry_point": "f", "tests": [{"args": [...], "kwargs": {...},
"expect": value}]}`, or programs `{"tests": [{"stdin": "...", "stdout": "..."}]}`. Only inputs enter
the sandbox; what comes out is compared here.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from posttrain.records import Outcome, Prompt
from posttrain.rewards import sandbox
from posttrain.rewards.answers import brief
from posttrain.rewards.code_answer import answer_program
from posttrain.rewards.code_reference import (
    FunctionTests,
    ProgramTests,
    read_reference,
)
from posttrain.rewards.sandbox.base import Limits, Run, SandboxFailure
from posttrain.rewards.values import decode, encode, same


class _Bare(ast.NodeTransformer):
    """Takes out what a run does not need: each line is read anew for every candidate."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        for argument in (*node.args.args, *node.args.kwonlyargs):
            argument.annotation = None
        return self._without_docstring(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._without_docstring(node)

    def _without_docstring(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        return self.generic_visit(node)


_LEFT_OUT = ("from __future__ ", "from typing ", "from posttrain.", "def same(", "def _typed(")


def _child() -> str:
    """values.py and code_child.py as one program, for where posttrain is not installed."""
    statements: list[str] = []
    for name in ("values.py", "code_child.py"):
        tree = ast.parse(Path(__file__).with_name(name).read_text())
        for node in tree.body[1:]:
            text = ast.unparse(_Bare().visit(node))
            if not text.startswith(_LEFT_OUT):
                statements.append(text)
    return "\n".join(statements)


_CHILD = _child()


def verify_code(prompt: Prompt, text: str) -> Outcome:
    """Pass when every test does; None where the sandbox failed.

    parts: `tests`, `tests_run`, `tests_passed` (counts), `share_passed`, and `fenced`, 1 where the
    program was taken from a fenced block and 0 where the whole text is it.
    """
    try:
        reference = read_reference(prompt.reference)
    except ValueError as error:
        return Outcome(passed=None, score=0.0, why=str(error))
    functions = isinstance(reference, FunctionTests)
    answer = answer_program(text, reference.entry_point if functions else None, reference.prefix)
    limits = sandbox.limits(reference.limits)
    try:
        if functions:
            verdicts, why = _run_function(answer.program, reference, limits)
        else:
            verdicts, why = _run_programs(answer.program, reference, limits)
    except SandboxFailure as failure:
        return Outcome(passed=None, score=0.0, why=f"sandbox: {failure.why}")
    total, num_passed = len(reference.tests), sum(verdicts)
    passed = num_passed == total and not why
    parts = {
        "tests": float(total),
        "tests_run": float(len(verdicts)),
        "tests_passed": float(num_passed),
        "share_passed": num_passed / total,
        "fenced": float(answer.fenced),
    }
    why = f"{total} of {total} tests" if passed else why
    return Outcome(passed=passed, score=float(passed), why=why, parts=parts)


def fits_code(prompt: Prompt) -> str | None:
    """The reference must be tests in one of the two forms, as JSON and not too many."""
    try:
        read_reference(prompt.reference)
    except ValueError as error:
        return str(error)
    return None


def _run_function(program: str, reference: FunctionTests, limits: Limits) -> tuple[list[bool], str]:
    """Whether each test that was run passed, and the first failure; empty where there is none."""
    calls = [{"args": encode(t.args), "kwargs": encode(t.kwargs)} for t in reference.tests]
    job = {"code": program, "entry_point": reference.entry_point, "calls": calls}
    stdin = json.dumps(job).encode()
    run = sandbox.current().run(_CHILD, stdin, limits)
    verdicts: list[bool] = []
    first = ""
    lines, broken = _lines(run, len(calls))
    if lines and not lines[0]["loaded"]:
        return [], str(lines[0]["error"])
    for test, line in zip(reference.tests, lines[1 : len(calls) + 1], strict=False):
        if "error" in line:
            passed, got = False, brief(str(line["error"]))
        else:
            try:
                value = decode(line["value"])
            except ValueError as error:
                return verdicts, first or f"malformed result: {brief(str(error))}"
            passed, got = same(test.expect, value, reference.float_tolerance), _shown(value)
        if not passed and not first:
            asked = _shown_call(reference.entry_point, test.args, test.kwargs)
            first = f"test {len(verdicts) + 1}: {asked}: expected {_shown(test.expect)}, got {got}"
        verdicts.append(passed)
    if not first and (broken or len(lines) != len(calls) + 2 or not run.ok):
        # Here a limit was hit, or somebody else ended the process or wrote on the channel.
        limit = _limit(run)
        if broken and not limit:
            first = f"malformed results: {broken}"
        else:
            place = f"test {len(verdicts) + 1}" if lines else "loading"
            first = f"{place}: {limit or 'ended early'}"
    return verdicts, first


def _lines(run: Run, num_calls: int) -> tuple[list[dict[str, Any]], str]:
    """The well-formed lines of a run in their order, and what is wrong with the first other one."""
    found: list[dict[str, Any]] = []
    text, _, rest = run.stdout.rpartition(b"\n")
    for line in text.split(b"\n") if text else []:
        try:
            read: Any = json.loads(line)
        except (ValueError, RecursionError):
            return found, "not JSON"
        number = len(found) - 1
        if number < 0:
            allowed = ({"loaded"}, {"loaded", "error"})
        elif number < num_calls:
            allowed = ({"call", "value"}, {"call", "error"})
        else:
            allowed = ({"end"},)
        if not isinstance(read, dict):
            return found, "an unexpected line"
        value = cast(dict[str, Any], read)
        if set(value) not in allowed:
            return found, "an unexpected line"
        counted = value.get("call", value.get("end", number))
        if number >= 0 and (type(counted) is not int or counted != number):
            return found, "a line out of its order"
        if number > num_calls:
            return found, "more lines than calls"
        found.append(value)
    return found, "an unfinished line" if rest else ""


def _run_programs(program: str, reference: ProgramTests, limits: Limits) -> tuple[list[bool], str]:
    """As `_run_function`; a fresh run for each test, and none after a limit was hit."""
    verdicts: list[bool] = []
    first = ""
    for number, test in enumerate(reference.tests, start=1):
        run = sandbox.current().run(program, test.stdin.encode(), limits)
        limit = _limit(run)
        got = run.stdout.decode("utf-8", "backslashreplace")
        passed = not limit and run.exit == 0 and _tidy(got) == _tidy(test.stdout)
        verdicts.append(passed)
        if not passed and not first:
            if limit or run.exit:
                first = f"test {number}: {limit or _last_words(run)}"
            else:
                first = f"test {number}: {_difference(_tidy(test.stdout), _tidy(got))}"
        if limit:
            break
    return verdicts, first


def _limit(run: Run) -> str:
    """What ended a run before its time; empty where it ended by itself."""
    return {
        "exit": "",
        "signal": f"killed by signal {-(run.exit or 0)}",
        "timeout": f"timeout after {run.seconds:.1f} s",
        "memory": "out of memory",
        "output": "too much output",
        "files": "too many files",
    }[run.reason]


def _last_words(run: Run) -> str:
    last = run.stderr.rstrip().rpartition("\n")[2]
    return brief(last, 100) if last else f"exit status {run.exit}"


def _tidy(text: str) -> list[str]:
    """Lines without whitespace at their ends, and none that are empty at the end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _difference(expected: Sequence[str], got: Sequence[str]) -> str:
    for number, (left, right) in enumerate(zip(expected, got, strict=False), start=1):
        if left != right:
            return f"line {number}: expected {brief(repr(left))}, got {brief(repr(right))}"
    return f"expected {len(expected)} lines, got {len(got)}"


def _shown(value: object) -> str:
    try:
        return brief(repr(value))
    except ValueError:
        # An integer past the number of digits that Python turns into text.
        return "a very long integer"


def _shown_call(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    given = [_shown(value) for value in args] + [f"{k}={_shown(v)}" for k, v in kwargs.items()]
    return brief(f"{name}({', '.join(given)})", 80)
