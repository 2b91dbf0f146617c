"""All arms on all simulated pools with paired seeds; finished runs are kept and not run again."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path

import posttrain
from benchmarks.curriculum_rows import (
    MAX_SPENT,
    SHUFFLED,
    TARGETS,
    Row,
    append_row,
    code_hash,
    read_ledger,
    row_of,
    shipped_curricula,
)
from benchmarks.curriculum_simulated.pools import POOLS
from benchmarks.curriculum_simulated.simulation import simulate
from posttrain.curriculum import CurriculumSpec
from posttrain.progress import progress
from posttrain.records import content_hash

ORACLE = "oracle (knows all pass rates)"
_NUM_CURVE_POINTS = 60


def arms() -> dict[str, CurriculumSpec | None]:
    """Return every shipped curriculum, the oracle (None), and adaptive with shuffled tags."""
    shipped = shipped_curricula()
    return {**shipped, ORACLE: None, SHUFFLED: shipped["adaptive"]}


def run_suite(
    ledger: Path, *, seeds: Sequence[int], pools: Sequence[str], num_processes: int
) -> list[Row]:
    """Return the rows of all arms, pools and seeds; append new ones to `ledger` as they finish.

    A row is finished if pool, curriculum, seed and the code of the bed and of curricula are equal.
    """
    known = read_ledger(ledger)
    rows: list[Row] = []
    for part in (("uniform",), [arm for arm in arms() if arm != "uniform"]):
        jobs = [(pool, arm, seed) for seed in seeds for pool in pools for arm in part]
        uniform = {(r["pool"], r["seed"]): r for r in rows if r["arm"] == "uniform"}
        missing = [job for job in jobs if _key(*job) not in known]
        for row in _run(missing, uniform, num_processes):
            known[row["key"]] = row
            append_row(ledger, row)
        rows += [known[_key(*job)] for job in jobs]
    return rows


def _run(
    jobs: Sequence[tuple[str, str, int]],
    uniform: Mapping[tuple[str, int], Row],
    num_processes: int,
) -> Iterator[Row]:
    if not jobs:
        return
    with (
        ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn")) as workers,
        progress("simulated learners", total=len(jobs)) as bar,
    ):
        running = [
            workers.submit(run_arm, pool, arm, seed, uniform.get((pool, seed)))
            for pool, arm, seed in jobs
        ]
        for done in as_completed(running):
            bar.advance(1)
            yield done.result()


def run_arm(pool: str, arm: str, seed: int, uniform: Row | None) -> Row:
    """Run one arm; `uniform` is the row of the same pool and seed, None for uniform itself."""
    spec = replace(POOLS[pool], shuffled_tags=arm == SHUFFLED)
    curriculum = arms()[arm]
    if uniform is None:
        trace = simulate(curriculum, spec, seed=seed)
        start, final = trace.points[0]["held_out"], trace.points[-1]["held_out"]
    else:
        start, final = uniform["start"], uniform["uniform_final"]
        goal = None if spec.random_reward else start + TARGETS[-1] * (final - start)
        most = uniform["spent"]["tokens"] * (1.0 if spec.random_reward else MAX_SPENT)
        trace = simulate(curriculum, spec, seed=seed, max_tokens=int(most), stop_at=goal)
    row = row_of(
        trace,
        key=_key(pool, arm, seed),
        pool=pool,
        arm=arm,
        seed=seed,
        start=start,
        uniform_final=final,
    )
    return row | {"curve": _thinned(row["curve"])}


def _thinned(curve: list[list[float]]) -> list[list[float]]:
    every = max(1, len(curve) // _NUM_CURVE_POINTS)
    return [*curve[:-1:every], curve[-1]]


def _key(pool: str, arm: str, seed: int) -> str:
    curriculum = arms()[arm]
    settings = curriculum.model_dump(mode="json") if curriculum is not None else None
    return content_hash(arm, settings, asdict(POOLS[pool]), seed, _code())


@functools.cache
def _code() -> str:
    here = Path(__file__).parent
    package = Path(posttrain.__file__).parent
    return code_hash(here, here.parent / "curriculum_rows.py", package / "curriculum")
