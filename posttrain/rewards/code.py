"""Verifier `code`: the program in an answer gives the right outputs, run in a sandbox.

The reference is JSON: functions `{"entry_point": "f", "tests": [{"args": [...], "kwargs": {...},
"expect": value}]}`, or programs `{"tests": [{"stdin": "...", "stdout": "..."}]}`. Only inputs enter
the sandbox; outputs are compared here.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from posttrain import sandbox
from posttrain.records import Outcome, OutcomeKind, Prompt
from posttrain.rewards.answers import answer_program, brief
from posttrain.rewards.code_reference import (
    FunctionTests,
    ProgramTests,
    read_reference,
)
from posttrain.rewards.values import decode, encode, same
from posttrain.rewards.verifier import Verifier, decided, undecided
from posttrain.sandbox.base import Limits, Run, SandboxFailure

REWARD_HACKS = {
    "exit": re.compile(
        r"\bsys\.exit\b|\bos\._exit\b|\bos\.abort\b|\b(?:exit|quit)\s*\(|\bSystemExit\b|\bos\.kill\b"
    ),
    "frames": re.compile(
        r"\b_getframe\b|\bcurrentframe\b|\bf_(?:back|locals|globals|code)\b|\b__traceback__\b"
        r"|\bgi_frame\b|\bsettrace\b|\bsetprofile\b|\binspect\.(?:stack|getouterframes)\b"
    ),
    "garbage collector": re.compile(r"\bget_(?:objects|referrers|referents)\b|\bimport\s+gc\b"),
    "equality": re.compile(r"\b__(?:eq|ne|hash|bool|repr|str|class|instancecheck)__\b"),
    "at exit": re.compile(r"\batexit\b|\b__del__\b|\bweakref\.finalize\b"),
    "tests": re.compile(
        r"\b(?:unittest|pytest|conftest|doctest)\b|\brun_tests?\b|\btest_cases?\b|\bexpect(?:ed)?\b"
        r"|\bcheck\s*\(\s*candidate\b",
        re.IGNORECASE,
    ),
    "interpreter": re.compile(
        r"\bbuiltins\b|\b__builtins__\b|\bsys\.modules\b|\b__subclasses__\b|\bctypes\b"
        r"|\bimportlib\b|\b__import__\b|\bsys\.meta_path\b|\bsys\.std(?:out|in|err)\s*="
    ),
    "system": re.compile(r"\bsubprocess\b|\bos\.(?:system|popen|fork|dup2)\b|\bsocket\b|/proc/"),
}
"""Exits that read as success, frames and garbage collectors that hold the tests, and the like."""
_LEFT_OUT = ("from __future__ ", "from typing ", "from posttrain.", "def same(", "def _typed(")

_Failure = tuple[OutcomeKind, str]
"""The first failure of a program, and its reason in words."""


class _Bare(ast.NodeTransformer):
    """Removes what a run does not need: each line is read again for every candidate."""

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


@functools.cache
def _child() -> str:
    """Join values.py and code_child.py into a program that needs no posttrain."""
    statements: list[str] = []
    for name in ("values.py", "code_child.py"):
        tree = ast.parse(Path(__file__).with_name(name).read_text())
        for node in tree.body[1:]:
            text = ast.unparse(_Bare().visit(node))
            if not text.startswith(_LEFT_OUT):
                statements.append(text)
    return "\n".join(statements)


def _verify(prompt: Prompt, text: str) -> Outcome:
    """Pass where every test does; None where the sandbox failed.

    parts: `tests`, `tests_run`, `tests_passed` (counts), `share_passed`, and `fenced`, 1 where the
    program was taken from a fenced block and 0 where the whole text is it.
    """
    try:
        reference = read_reference(prompt.reference)
    except ValueError as error:
        return undecided("bad_reference", str(error))
    functions = isinstance(reference, FunctionTests)
    answer = answer_program(text, reference.entry_point if functions else None, reference.prefix)
    limits = sandbox.limits(reference.limits)
    try:
        if functions:
            verdicts, failure = _run_function(answer.program, reference, limits)
        else:
            verdicts, failure = _run_programs(answer.program, reference, limits)
    except SandboxFailure as broken:
        return undecided("sandbox_failed", f"sandbox: {broken.why}")
    total, num_passed = len(reference.tests), sum(verdicts)
    passed = num_passed == total and failure is None
    parts = {
        "tests": float(total),
        "tests_run": float(len(verdicts)),
        "tests_passed": float(num_passed),
        "share_passed": num_passed / total,
        "fenced": float(answer.fenced),
    }
    kind, why = failure or ("passed", f"{total} of {total} tests")
    return decided(passed, kind, why, parts=parts)


def _check(prompt: Prompt) -> str | None:
    """Refuse a reference that is not JSON tests in one of the two forms, or holds too many."""
    try:
        read_reference(prompt.reference)
    except ValueError as error:
        return str(error)
    return None


def _run_function(
    program: str, reference: FunctionTests, limits: Limits
) -> tuple[list[bool], _Failure | None]:
    """Return whether each test that was run passed, and the first failure."""
    calls = [{"args": encode(t.args), "kwargs": encode(t.kwargs)} for t in reference.tests]
    job = {"code": program, "entry_point": reference.entry_point, "calls": calls}
    stdin = json.dumps(job).encode()
    run = sandbox.current().run(_child(), stdin, limits)
    verdicts: list[bool] = []
    first: _Failure | None = None
    lines, broken = _lines(run, len(calls))
    if lines and not lines[0]["loaded"]:
        error = str(lines[0]["error"])
        return [], (_kind_of(error, "does_not_load"), error)
    for test, line in zip(reference.tests, lines[1 : len(calls) + 1], strict=False):
        kind: OutcomeKind = "wrong"
        if "error" in line:
            passed, got = False, brief(str(line["error"]))
            kind = _kind_of(got, "raised")
        else:
            try:
                value = decode(line["value"])
            except ValueError as error:
                why = f"malformed result: {brief(str(error))}"
                return verdicts, first or ("malformed_output", why)
            passed, got = same(test.expect, value, reference.float_tolerance), _shown(value)
        if not passed and not first:
            asked = _shown_call(reference.entry_point, test.args, test.kwargs)
            why = f"test {len(verdicts) + 1}: {asked}: expected {_shown(test.expect)}, got {got}"
            first = kind, why
        verdicts.append(passed)
    if not first and (broken or len(lines) != len(calls) + 2 or not run.ok):
        # A limit was hit, or the program ended the process or wrote on the result channel.
        limit = _limit(run)
        if broken and not limit:
            first = "malformed_output", f"malformed results: {broken}"
        else:
            kind, why = limit or ("ended_early", "ended early")
            first = kind, f"test {len(verdicts) + 1}: {why}" if lines else f"loading: {why}"
    return verdicts, first


def _kind_of(error: str, kind: OutcomeKind) -> OutcomeKind:
    """Tell a program that ran out of memory from other errors."""
    return "out_of_memory" if error.startswith("MemoryError") else kind


def _lines(run: Run, num_calls: int) -> tuple[list[dict[str, Any]], str]:
    """Return the well-formed lines of a run, in order, and the fault in the first other one."""
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


def _run_programs(
    program: str, reference: ProgramTests, limits: Limits
) -> tuple[list[bool], _Failure | None]:
    """Do as `_run_function`, with a fresh run for each test, and none after a limit was hit."""
    verdicts: list[bool] = []
    first: _Failure | None = None
    for number, test in enumerate(reference.tests, start=1):
        run = sandbox.current().run(program, test.stdin.encode(), limits)
        limit = _limit(run)
        got = run.stdout.decode("utf-8", "backslashreplace")
        passed = not limit and run.exit == 0 and _tidy(got) == _tidy(test.stdout)
        verdicts.append(passed)
        if not passed and not first:
            if limit or run.exit:
                kind, why = limit or _last_words(run)
            else:
                kind, why = "wrong", _difference(_tidy(test.stdout), _tidy(got))
            first = kind, f"test {number}: {why}"
        if limit:
            break
    return verdicts, first


def _limit(run: Run) -> _Failure | None:
    """Return the limit or signal that ended a run; None where it ended by itself."""
    failures: dict[str, _Failure] = {
        "signal": ("killed", f"killed by signal {-(run.exit or 0)}"),
        "timeout": ("timeout", f"timeout after {run.seconds:.1f} s"),
        "memory": ("out_of_memory", "out of memory"),
        "output": ("too_much_output", "too much output"),
        "files": ("too_many_files", "too many files"),
    }
    return failures.get(run.reason)


def _last_words(run: Run) -> _Failure:
    last = run.stderr.rstrip().rpartition("\n")[2]
    return ("raised", brief(last, 100)) if last else ("ended_early", f"exit status {run.exit}")


def _tidy(text: str) -> list[str]:
    """Split into lines, without whitespace at their ends and empty lines at the end."""
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


CODE = Verifier(
    name="code",
    summary="a program against tests, in a [sandbox](sandbox.md)",
    takes="tests as JSON",
    verify=_verify,
    check=_check,
    reference_from="column",
    reference_columns=("tests", "test_cases", "test_list", "unit_tests", "input_output"),
    is_open=True,
    reward_hacks=REWARD_HACKS,
    uses="sandbox",
)
