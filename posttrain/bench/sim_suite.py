"""All arms on all simulated pools with paired seeds, arm by arm, finished ones never run again."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path

from posttrain.bench.bed_rows import (
    MAX_SPENT,
    SHUFFLED,
    TARGETS,
    Row,
    append_row,
    read_ledger,
    row_of,
)
from posttrain.bench.sim_pools import POOLS, PoolSpec
from posttrain.bench.sim_run import simulate
from posttrain.progress import progress
from posttrain.recipe import load_curriculum
from posttrain.recipe.curricula import CurriculumSpec
from posttrain.recipe.files import shipped_files
from posttrain.records import content_hash

ORACLE = "oracle (knows all pass rates)"
_NUM_CURVE_POINTS = 60


def arms() -> dict[str, CurriculumSpec | None]:
    """Every shipped curriculum, the oracle (None), and adaptive with shuffled tags."""
    shipped = {path.stem: load_curriculum(path) for path in shipped_files("curricula")}
    return {"uniform": shipped["uniform"], **shipped, ORACLE: None, SHUFFLED: shipped["adaptive"]}


def run_suite(
    ledger: Path, *, seeds: Sequence[int], pools: Sequence[str], num_processes: int
) -> list[Row]:
    """The rows of all arms, pools and seeds; new ones are appended to `ledger` as they finish.

    A row counts as finished where pool, curriculum and the code of both are the same.
    """
    known = {row["key"]: row for row in read_ledger(ledger)}
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
    """One run as a ledger's row; `uniform` is the same seed's, None for that arm itself."""
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
    spec: PoolSpec = POOLS[pool]
    curriculum = arms()[arm]
    told = curriculum.model_dump(mode="json") if curriculum is not None else None
    return content_hash(arm, told, asdict(spec), seed, code_hash())


@functools.cache
def code_hash() -> str:
    """Of all modules that a run's outcome depends on."""
    here = Path(__file__).parent
    files = [*(here.parent / "curriculum").glob("*.py"), here / "learner.py", here / "bed_rows.py"]
    files += [path for path in here.glob("sim_*.py") if path.name not in ("sim_report.py",)]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
