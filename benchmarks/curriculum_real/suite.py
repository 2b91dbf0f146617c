"""All arms on all real pools with paired seeds; finished runs are kept and not run again."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

import datasets
import torch

import posttrain
from benchmarks.curriculum_real.pools import (
    GROUP_SIZE,
    REAL_POOLS,
    RealPool,
    RealPoolSpec,
    draw_real_pool,
)
from benchmarks.curriculum_real.run import BATCH, train_arm
from benchmarks.curriculum_real.start import (
    NUM_STEPS,
    exam,
    model_spec,
    pass_rates,
    starting_policy,
)
from benchmarks.curriculum_rows import (
    MAX_SPENT,
    SHUFFLED,
    TARGETS,
    Floats,
    Row,
    append_row,
    code_hash,
    read_ledger,
    row_of,
    shipped_curricula,
)
from posttrain.curriculum import CurriculumSpec
from posttrain.errors import RecipeError
from posttrain.models import PolicyPath, load_policy, load_tokenizer
from posttrain.progress import note, progress
from posttrain.records import Prompt, content_hash

# An arm may take so many of uniform's steps before it is given up as a bound.
MAX_STEPS = 3
NUM_EVALS, TOKENS_PER_ROLLOUT = 40, 9
"""Approximate number of uniform's evaluations, if a rollout has this many tokens; other arms are
evaluated after as many tokens."""


# What more groups with signal are worth shows in the learning rate that they allow.
HIGHER_RATE = ", higher rate"
_AT_HIGHER_RATE = ("uniform", "dapo", "adaptive", "adaptive_no_probe")


def real_arms() -> dict[str, CurriculumSpec]:
    """Return shipped curricula, adaptive with shuffled tags, and arms at a higher learning rate."""
    shipped = shipped_curricula()
    faster = {name + HIGHER_RATE: shipped[name] for name in _AT_HIGHER_RATE}
    return {**shipped, SHUFFLED: shipped["adaptive"], **faster}


def run_real_suite(
    ledger: Path,
    *,
    seeds: Sequence[int],
    pools: Sequence[str],
    arms: Sequence[str],
    cache: Path,
    sft_steps: int = NUM_STEPS,
) -> list[Row]:
    """Return the rows of uniform and `arms` on all pools and seeds; append new ones to `ledger`.

    A row is finished if pool, curriculum, seed and the code behind them are equal. Starting
    policies are kept in `cache`.
    """
    # More threads cost more than they bring at this size, and sums in one order repeat.
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    wanted = list(dict.fromkeys(["uniform", *arms]))
    jobs = [(seed, pool, arm) for seed in seeds for pool in pools for arm in wanted]
    known = read_ledger(ledger)
    rows: dict[tuple[int, str, str], Row] = {}
    with progress("real learners", total=len(jobs)) as bar:
        for seed, pool, arm in jobs:
            key = row_key(pool, arm, seed, sft_steps=sft_steps)
            if key not in known:
                row = run_real_arm(
                    pool,
                    arm,
                    seed,
                    uniform=rows.get((seed, pool, "uniform")),
                    cache=cache,
                    sft_steps=sft_steps,
                )
                known[key] = row
                append_row(ledger, row)
                note(
                    f"{pool}, {arm}, seed {seed}: pass@1 {row['start']:.3f} -> {row['final']:.3f}, "
                    f"{row['spent']['tokens']:,.0f} tokens, {row['wall_seconds']:.0f} s"
                )
            rows[seed, pool, arm] = known[key]
            bar.advance(1)
    return list(rows.values())


def finished_rows(
    ledger: Path, *, seeds: Sequence[int], pools: Sequence[str], arms: Sequence[str]
) -> list[Row]:
    """Return the ledger's rows of these arms where uniform ran with the same pool and seed."""
    known = read_ledger(ledger)
    wanted = list(dict.fromkeys(["uniform", *arms]))
    rows = [
        known[key]
        for pool in pools
        for seed in seeds
        if row_key(pool, "uniform", seed) in known
        for arm in wanted
        if (key := row_key(pool, arm, seed)) in known
    ]
    if not rows:
        raise RecipeError(
            f"{ledger} has no finished run of these",
            hint="leave --finished out to run them; runs of other code or pools do not count",
        )
    return rows


def run_real_arm(
    pool: str,
    arm: str,
    seed: int,
    *,
    uniform: Row | None,
    cache: Path,
    sft_steps: int = NUM_STEPS,
    pools: Mapping[str, RealPoolSpec] = REAL_POOLS,
) -> Row:
    """Run one arm; `uniform` is the row of the same pool and seed, None for uniform itself."""
    key = row_key(pool, arm, seed, sft_steps=sft_steps, pools=pools)
    spec = replace(pools[pool], shuffled_tags=arm == SHUFFLED)
    policy, drawn = _starting_point(spec, seed, cache, sft_steps)
    curriculum = real_arms()[arm]
    learning_rate = spec.higher_rate if arm.endswith(HIGHER_RATE) else spec.learning_rate
    label = f"{pool}, {arm}, seed {seed}"
    eval_every = spec.num_steps * BATCH * GROUP_SIZE * TOKENS_PER_ROLLOUT // NUM_EVALS
    if uniform is None:
        trace = train_arm(
            curriculum,
            drawn,
            policy,
            seed=seed,
            max_steps=spec.num_steps,
            learning_rate=learning_rate,
            eval_every=eval_every,
            label=label,
        )
        start = trace.points[0]["held_out"]
        final = fmean(point["held_out"] for point in trace.points[-3:])
    else:
        start, final = uniform["start"], uniform["uniform_final"]
        trace = train_arm(
            curriculum,
            drawn,
            policy,
            seed=seed,
            max_steps=MAX_STEPS * spec.num_steps,
            learning_rate=learning_rate,
            eval_every=eval_every,
            max_tokens=int(MAX_SPENT * uniform["spent"]["tokens"]),
            stop_at=start + TARGETS[-1] * (final - start),
            label=label,
        )
    row = row_of(trace, key=key, pool=pool, arm=arm, seed=seed, start=start, uniform_final=final)
    return row | {"alive": drawn.alive}


@functools.lru_cache(maxsize=2)
def _starting_point(
    spec: RealPoolSpec, seed: int, cache: Path, sft_steps: int
) -> tuple[PolicyPath, RealPool]:
    policy = starting_policy(cache, seed=seed, num_steps=sft_steps)
    model = load_policy(policy, model_spec(policy.base), trainable=False).eval()
    tokenizer = load_tokenizer(policy.base)

    def rate(prompts: Sequence[Prompt]) -> Floats:
        return pass_rates(model, exam(tokenizer, prompts))

    return policy, draw_real_pool(spec, rate, seed=seed)


def row_key(
    pool: str,
    arm: str,
    seed: int,
    *,
    sft_steps: int = NUM_STEPS,
    pools: Mapping[str, RealPoolSpec] = REAL_POOLS,
) -> str:
    """Hash what a run's outcome depends on, uniform's run included, because it sets the target."""
    curriculum = real_arms()[arm]
    told = curriculum.model_dump(mode="json")
    own = (arm, told, asdict(pools[pool]), seed, sft_steps, _code())
    if arm == "uniform":
        return content_hash(*own)
    return content_hash(*own, row_key(pool, "uniform", seed, sft_steps=sft_steps, pools=pools))


@functools.cache
def _code() -> str:
    """Hash the bed, curricula, RL and SFT with what they train with, and the bed's engine."""
    here = Path(__file__).parent
    package = Path(posttrain.__file__).parent
    return code_hash(
        here,
        here.parent / "curriculum_rows.py",
        *(package / name for name in ("curriculum", "rl", "sft.py", "training.py")),
        package / "engines" / "transformers.py",
    )
