"""Outcomes per second of each verifier, and the effect of hung answers on the pool."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import asdict, dataclass

from benchmarks.verifiers.maths import labelled_pairs
from benchmarks.verifiers.tasks import make_task
from posttrain.bench.measure import Result, Spread, spread_of, take_turns
from posttrain.data.constraints import make_writing
from posttrain.data.python_functions import make_problem
from posttrain.records import Outcome, Prompt
from posttrain.rewards import close_workers, submit
from posttrain.rewards.reasoning_gym import make_entries

HUNG_SHARE = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """Times of one pass over some answers."""

    seconds: float
    seconds_decided: float
    """Seconds until the last decided answer; hung ones are given up later."""
    latencies: Sequence[float]
    """Seconds of each verifier call."""
    undecided: int


def verify_speed(*, num_answers: int = 400, num_rounds: int = 5) -> Result:
    """Measure outcomes per second and latency of every verifier with generated answers."""
    rows: list[list[str]] = []
    figures: dict[str, object] = {}
    for verifier in VERIFIERS:
        work = work_of(verifier, num_answers)
        _pass(work[:20])  # what starts once is not in the time
        taken = [_pass(work) for _ in range(num_rounds)]
        rate = spread_of([num_answers / one.seconds for one in taken])
        latencies = sorted(1000 * s for one in taken for s in one.latencies)
        tail = {name: latencies[int(q * (len(latencies) - 1))] for name, q in _QUANTILES.items()}
        rows.append(
            [
                f"`{verifier}`",
                _per_second(rate),
                *(f"{tail[name]:.1f}" for name in _QUANTILES),
                str(sum(one.undecided for one in taken)),
            ]
        )
        figures[verifier] = {
            "per_second": asdict(rate),
            "latency_ms": tail,
            "undecided": sum(one.undecided for one in taken),
        }
        close_workers()
    return Result(
        name="verify-speed",
        title="Verifiers: outcomes per second and latency",
        columns=["verifier", "outcomes/s", *(f"{name}, ms" for name in _QUANTILES), "undecided"],
        rows=rows,
        figures={"num_answers": num_answers, "num_rounds": num_rounds, "verifiers": figures},
        notes=[
            f"{num_answers} answers a pass, half of them right where the generator knows how, all "
            f"handed over at once; median of {num_rounds} passes with the lowest and highest.",
            "Latency is one verifier call, from the worker's free place to its answer.",
        ],
    )


def verify_hung(*, num_answers: int = 4000, num_rounds: int = 5) -> Result:
    """Measure throughput with and without a share of hung maths answers, in turns."""
    clean = work_of("math", num_answers)
    hung = with_hung(clean, HUNG_SHARE)
    _pass(clean[:20])
    taken = take_turns(
        {"clean": lambda _: _pass(clean), "hung": lambda _: _pass(hung)},
        num_rounds=num_rounds,
        num_warmups=0,
    )
    close_workers()
    whole = [c.seconds / h.seconds for c, h in zip(taken["clean"], taken["hung"], strict=True)]
    decided = [
        (c.seconds_decided / num_answers) / (h.seconds_decided / (num_answers - h.undecided))
        for c, h in zip(taken["clean"], taken["hung"], strict=True)
    ]
    rows = [
        [
            name,
            _per_second(spread_of([num_answers / one.seconds for one in passes])),
            f"{statistics.median(one.seconds for one in passes):.1f}",
            f"{statistics.median(one.seconds_decided for one in passes):.1f}",
            str(passes[0].undecided),
        ]
        for name, passes in taken.items()
    ]
    of_whole, of_decided = spread_of(whole), spread_of(decided)
    return Result(
        name="verify-hung",
        title=f"The pool of verifiers with {HUNG_SHARE:.0%} hung answers",
        columns=["answers", "outcomes/s", "seconds", "seconds to the last decided", "given up"],
        rows=rows,
        figures={
            "num_answers": num_answers,
            "num_hung": round(HUNG_SHARE * num_answers),
            "throughput_ratio": asdict(of_whole),
            "decided_ratio": asdict(of_decided),
        },
        notes=[
            f"Throughput with hung answers over clean: {_ratio(of_whole)}, all counted, the wait "
            "for the last hung ones included.",
            f"Of the answers that can be decided, per second: {_ratio(of_decided)}.",
            "A hung answer would keep a processor busy for ever. It is given up after 3 s, or "
            "after up to 12 s where it had less than a second of a processor.",
        ],
    )


_QUANTILES = {"median": 0.5, "95 %": 0.95, "99 %": 0.99, "most": 1.0}


def _pass(work: Sequence[Work]) -> Taken:
    started = time.perf_counter()
    futures: list[Future[Outcome]] = [submit(prompt, text) for prompt, text in work]
    last_decided = started
    for future in as_completed(futures):
        if future.result().passed is not None:
            last_decided = time.perf_counter()
    outcomes = [future.result() for future in futures]
    return Taken(
        seconds=time.perf_counter() - started,
        seconds_decided=last_decided - started,
        latencies=[outcome.seconds for outcome in outcomes],
        undecided=sum(outcome.passed is None for outcome in outcomes),
    )


def _per_second(rate: Spread) -> str:
    return f"{rate.median:,.0f} ({rate.low:,.0f} to {rate.high:,.0f})"


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"


Work = tuple[Prompt, str]
"""A task and an answer to it."""

HUNG = r"\boxed{9^{9^{9^9}}}"
"""An answer that keeps a computer algebra system busy until it is killed."""
_FAMILIES = ("chain_sum", "gcd", "letter_counting", "number_sorting", "knights_knaves")


def work_of(verifier: str, size: int, *, seed: int = 0) -> list[Work]:
    """Generate `size` answers for a verifier."""
    return list(itertools.islice(_MAKERS[verifier](random.Random(f"{verifier} {seed}")), size))


def with_hung(work: Sequence[Work], share: float, *, seed: int = 0) -> list[Work]:
    """Replace that share of answers, drawn at random, by hung ones."""
    places = set(random.Random(seed).sample(range(len(work)), round(share * len(work))))
    return [
        (make_task("math", "7"), HUNG) if place in places else one for place, one in enumerate(work)
    ]


def _exact(rng: random.Random) -> Iterator[Work]:
    while True:
        number = rng.randrange(10_000)
        yield make_task("exact", str(number)), f"The answer is {number + rng.randrange(2)}."


def _math(rng: random.Random) -> Iterator[Work]:
    pairs = labelled_pairs()
    while True:
        pair = rng.choice(pairs)
        yield make_task("math", pair.reference), pair.answer


def _choice(rng: random.Random) -> Iterator[Work]:
    while True:
        right, said = rng.choice("ABCD"), rng.choice("ABCD")
        yield make_task("choice", right), f"I think the answer is ({said})."


def _instructions(rng: random.Random) -> Iterator[Work]:
    while True:
        writing = make_writing(rng, rng.randint(1, 3))
        answer = writing.answer if rng.randrange(2) else writing.answer[: len(writing.answer) // 2]
        yield make_task("instructions", writing.reference), answer or "no"


def _reasoning_gym(rng: random.Random) -> Iterator[Work]:
    while True:
        for family in _FAMILIES:
            for made in make_entries(family, {}, seed=rng.randrange(2**31), size=50):
                answer = made["answer"] if rng.randrange(2) else "17"
                meta = {"family": family, "entry": made["entry"]}
                yield make_task("reasoning_gym", made["answer"], **meta), answer


def _code(rng: random.Random) -> Iterator[Work]:
    while True:
        problem = make_problem(rng, rng.randint(1, 5))
        answer = (
            problem.answer if rng.randrange(2) else problem.answer.replace("return", "return -")
        )
        yield make_task("code", problem.reference), answer


_MAKERS = {
    "exact": _exact,
    "math": _math,
    "choice": _choice,
    "instructions": _instructions,
    "reasoning_gym": _reasoning_gym,
    "code": _code,
}
VERIFIERS = tuple(_MAKERS)
