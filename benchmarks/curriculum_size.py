"""`python -m benchmarks.curriculum_size`: time per call and size of state on a large pool."""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.command import run_bed
from benchmarks.curriculum_rows import shipped_curricula
from benchmarks.curriculum_simulated.simulation import FAILED, PASSED
from posttrain.bench.measure import Result, Spread, spread_of, take_turns
from posttrain.cli.bench import NumRounds, OutFolder, show_result
from posttrain.cli.options import AsJson
from posttrain.curriculum import Curriculum, build_curriculum
from posttrain.progress import Bar, progress
from posttrain.records import Message, Prompt, RolloutGroup
from posttrain.tables import read_arrays, write_arrays

ARMS = ("uniform", "mopps", "adaptive")
NUM_PROPOSED, NUM_OBSERVED, NUM_PROBED, GROUP_SIZE = 1024, 128, 512, 8
NUM_STEPS_BEFORE = 150
"""Steps before timing; after them `adaptive` looks at a sample of the known prompts only."""
OPERATIONS = {
    "propose": f"propose {NUM_PROPOSED:,}, ms",
    "observe": f"observe {NUM_OBSERVED} groups, ms",
    "save": "save, ms",
    "load": "load, ms",
}
LIMITS = {"propose": 0.05, "observe": 0.005, "save": 1.0, "load": 2.0}
LIMIT_BYTES = 200_000_000


def bench(
    out: OutFolder = None,
    num_prompts: Annotated[
        int, typer.Option("--prompts", min=2048, help="Number of prompts in the pool.")
    ] = 1_000_000,
    num_rounds: NumRounds = 20,
    as_json: AsJson = False,
) -> None:
    """Time a curriculum's calls on a large pool, and weigh its state."""
    show_result(bench_curriculum_size(num_prompts=num_prompts, num_rounds=num_rounds), out, as_json)


def bench_curriculum_size(*, num_prompts: int = 1_000_000, num_rounds: int = 20) -> Result:
    """Time the calls of every arm on one pool, in turns, after some steps of a run."""
    prompts, rates, tags = _draw(num_prompts)
    specs = shipped_curricula()

    def build(arm: str) -> Curriculum:
        return build_curriculum(specs[arm], prompts, seed=0, tags=tags)

    held = {arm: _traced_bytes(build, arm) for arm in ARMS}
    users = {arm: _User(build, arm, rates) for arm in ARMS}
    total = len(ARMS) * (NUM_STEPS_BEFORE + num_rounds)
    with progress("curricula in use", total=total) as bar, tempfile.TemporaryDirectory() as folder:
        for user in users.values():
            user.run(NUM_STEPS_BEFORE, bar)

        def measured(arm: str) -> dict[str, float]:
            seconds = users[arm].measure(Path(folder) / "state")
            bar.advance(1)
            return seconds

        rounds = take_turns(
            {arm: lambda _, arm=arm: measured(arm) for arm in ARMS},
            num_rounds=num_rounds,
            num_warmups=0,
        )
    taken = {
        arm: {op: [seconds[op] for seconds in of_arm] for op in OPERATIONS}
        for arm, of_arm in rounds.items()
    }
    spreads = {
        arm: {op: spread_of(seconds) for op, seconds in of_arm.items()}
        for arm, of_arm in taken.items()
    }
    within = all(spreads["adaptive"][op].median <= limit for op, limit in LIMITS.items())
    return Result(
        name="curriculum-size",
        title=f"Curricula over {num_prompts:,} prompts",
        columns=["curriculum", *OPERATIONS.values(), "state file, MB", "in memory, MB"],
        rows=[
            [
                f"`{arm}`",
                *(_cell(spreads[arm][op]) for op in OPERATIONS),
                f"{users[arm].num_bytes / 1e6:.1f}",
                f"{held[arm] / 1e6:.1f}",
            ]
            for arm in ARMS
        ],
        figures={
            "prompts": num_prompts,
            "limits": {**LIMITS, "bytes": LIMIT_BYTES},
            "within": within and max(held["adaptive"], users["adaptive"].num_bytes) <= LIMIT_BYTES,
            "arms": {
                arm: {
                    "seconds": taken[arm],
                    "median": {op: spread.median for op, spread in spreads[arm].items()},
                    "file_bytes": users[arm].num_bytes,
                    "memory_bytes": held[arm],
                }
                for arm in ARMS
            },
        },
        notes=[
            f"Medians and extremes of {num_rounds} rounds in turns, after {NUM_STEPS_BEFORE} steps "
            f"of {NUM_OBSERVED} groups and {NUM_PROBED} likelihoods each; three capabilities, a "
            "tag for every prompt. `propose` includes learning what was observed since the last.",
            "`load` reads the file into a curriculum that has its prompts. In memory: what the "
            "curriculum itself holds, without the prompts.",
            "Targets for adaptive: "
            + ", ".join(f"{op} {limit * 1000:g} ms" for op, limit in LIMITS.items())
            + f", {LIMIT_BYTES / 1e6:.0f} MB.",
        ],
    )


class _User:
    """A curriculum in use, whose groups follow the prompts' pass rates."""

    def __init__(
        self, build: Callable[[str], Curriculum], arm: str, rates: dict[str, float]
    ) -> None:
        self._rates = rates
        self._curriculum = build(arm)
        self._other = build(arm)
        self._rng = np.random.default_rng(2)
        self._step = 0
        self.num_bytes = 0

    def run(self, num_steps: int, bar: Bar) -> None:
        """Take steps that are not timed."""
        for _ in range(num_steps):
            for group in self._groups(self._propose(NUM_OBSERVED)):
                self._curriculum.observe(group)
            self._probe()
            bar.advance(1)

    def measure(self, file: Path) -> dict[str, float]:
        """Time each operation once; return seconds by operation."""
        seconds: dict[str, float] = {}
        started = time.perf_counter()
        proposed = self._propose(NUM_PROPOSED)
        seconds["propose"] = time.perf_counter() - started

        groups = self._groups(proposed[:NUM_OBSERVED])
        started = time.perf_counter()
        for group in groups:
            self._curriculum.observe(group)
        seconds["observe"] = time.perf_counter() - started
        self._probe()

        started = time.perf_counter()
        write_arrays(file, self._curriculum.state_dict())
        seconds["save"] = time.perf_counter() - started
        self.num_bytes = file.stat().st_size

        started = time.perf_counter()
        self._other.load_state_dict(read_arrays(file))
        seconds["load"] = time.perf_counter() - started
        return seconds

    def _propose(self, num_prompts: int) -> list[str]:
        proposals = self._curriculum.propose(num_prompts, num_generations=GROUP_SIZE)
        return [proposal.prompt_id for proposal in proposals]

    def _probe(self) -> None:
        asked = self._curriculum.prompts_to_score(NUM_OBSERVED)
        told: dict[str, float | None] = {i: float(np.log(self._rates[i])) for i in asked}
        self._curriculum.observe_likelihood(told, step=self._step)
        self._step += 1

    def _groups(self, prompt_ids: Sequence[str]) -> list[RolloutGroup]:
        return [
            RolloutGroup(
                prompt_id=prompt_id,
                step=self._step,
                policy_version=self._step,
                rollouts=tuple(
                    PASSED if passed else FAILED
                    for passed in (self._rng.random(GROUP_SIZE) < self._rates[prompt_id]).tolist()
                ),
            )
            for prompt_id in prompt_ids
        ]


def _draw(
    num_prompts: int,
) -> tuple[list[Prompt], dict[str, float], dict[str, float]]:
    """Draw prompts, their pass rates, and tags that follow these with noise."""
    rng = np.random.default_rng(0)
    difficulty = rng.normal(1.0, 2.0, num_prompts)
    rates = 1.0 / (1.0 + np.exp(difficulty))
    noisy = difficulty + rng.normal(0.0, 2.0, num_prompts)
    prompts = [
        Prompt.make(
            messages=[Message(role="user", content=str(i))],
            reference="1",
            verifier="exact",
            capability=("maths", "code", "instructions")[i % 3],
        )
        for i in range(num_prompts)
    ]
    ids = [prompt.prompt_id for prompt in prompts]
    return (
        prompts,
        dict(zip(ids, rates.tolist(), strict=True)),
        dict(zip(ids, noisy.tolist(), strict=True)),
    )


def _traced_bytes(build: Callable[[str], Curriculum], arm: str) -> int:
    """Return the bytes that one curriculum allocates and keeps."""
    tracemalloc.start()
    try:
        kept: Any = build(arm)
        num_bytes, _ = tracemalloc.get_traced_memory()
        del kept
    finally:
        tracemalloc.stop()
    return num_bytes


def _cell(spread: Spread) -> str:
    return f"{spread.median * 1000:.2f} ({spread.low * 1000:.2f} to {spread.high * 1000:.2f})"


if __name__ == "__main__":
    run_bed(bench)
