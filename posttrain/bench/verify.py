"""Outcomes per second of each verifier, and what hung answers do to the pool."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import Future, as_completed
from dataclasses import asdict, dataclass

from posttrain.bench.record import Result
from posttrain.bench.spread import Spread, spread_of, take_turns
from posttrain.bench.verify_work import VERIFIERS, Work, with_hung, work_of
from posttrain.records import Outcome
from posttrain.rewards import close_workers, submit

HUNG_SHARE = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """One pass over some answers."""

    seconds: float
    seconds_decided: float
    """Until the last answer that was decided; those that hang are given up later."""
    latencies: Sequence[float]
    """Seconds that each verifier call took."""
    undecided: int


def verify_speed(*, num_answers: int = 400, num_rounds: int = 5) -> Result:
    """Outcomes per second and the latency tail of every verifier that generates from nothing."""
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
    """Maths answers with and without a share that hangs, in turns; the ratio of throughputs."""
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
