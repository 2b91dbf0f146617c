"""All arms on all pools of the real bed with paired seeds; finished runs are never run again."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

import datasets
import torch

from posttrain.bench.bed_rows import (
    MAX_SPENT,
    SHUFFLED,
    TARGETS,
    Row,
    append_row,
    read_ledger,
    row_of,
)
from posttrain.bench.learner import Floats
from posttrain.bench.real_pools import GROUP_SIZE, RealPool, draw_real_pool
from posttrain.bench.real_run import BATCH, train_arm
from posttrain.bench.real_specs import REAL_POOLS, RealPoolSpec
from posttrain.bench.real_start import NUM_STEPS, exam, model_spec, pass_rates, starting_policy
from posttrain.curriculum import build_curriculum
from posttrain.models import PolicyPath, load_policy, load_tokenizer
from posttrain.progress import note, progress
from posttrain.recipe import load_curriculum
from posttrain.recipe.curricula import CurriculumSpec
from posttrain.recipe.files import shipped_files
from posttrain.records import Message, Prompt, content_hash

# An arm may take so many of uniform's steps before it is given up as a bound.
MAX_STEPS = 3
NUM_EVALS, TOKENS_PER_ROLLOUT = 40, 9
"""About so often uniform is measured, every rollout taken to be so long; the other arms are
measured after as many tokens as it."""


# What more groups with signal are worth shows in the learning rate that they allow.
HIGHER_RATE = ", higher rate"
_AT_HIGHER_RATE = ("uniform", "dapo", "adaptive", "adaptive_no_probe")


def real_arms() -> dict[str, CurriculumSpec]:
    """Shipped curricula, uniform first; adaptive with shuffled tags; some at a higher rate."""
    shipped = {path.stem: load_curriculum(path) for path in shipped_files("curricula")}
    faster = {name + HIGHER_RATE: shipped[name] for name in _AT_HIGHER_RATE}
    return {"uniform": shipped["uniform"], **shipped, SHUFFLED: shipped["adaptive"], **faster}


def run_real_suite(
    ledger: Path,
    *,
    seeds: Sequence[int],
    pools: Sequence[str],
    arms: Sequence[str],
    cache: Path,
    sft_steps: int = NUM_STEPS,
) -> list[Row]:
    """The rows of the arms, uniform always, on pools and seeds; new ones go to `ledger` at once.

    A row counts as finished where pool, curriculum, seed and the code of them are the same.
    Starting policies are kept in `cache`.
    """
    # More threads cost more than they bring at this size, and sums in one order repeat.
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    wanted = list(dict.fromkeys(["uniform", *arms]))
    jobs = [(seed, pool, arm) for seed in seeds for pool in pools for arm in wanted]
    known = {row["key"]: row for row in read_ledger(ledger)}
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
    """One run as a ledger's row; `uniform` is the same seed's, None for that arm itself."""
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
    """What a run's outcome depends on, in one hash; of uniform's, too, which sets the target."""
    curriculum = real_arms()[arm]
    told = curriculum.model_dump(mode="json")
    own = (arm, told, asdict(pools[pool]), seed, sft_steps, code_hash(curriculum))
    if arm == "uniform":
        return content_hash(*own)
    return content_hash(*own, row_key(pool, "uniform", seed, sft_steps=sft_steps, pools=pools))


def code_hash(spec: CurriculumSpec) -> str:
    """Of the bed's modules, SFT's, the RL stage's and its engine's, this kind of curriculum's.

    Another kind's may change, and, as the pools' values are in the key themselves, another pool's.
    """
    here = Path(__file__).parent
    files = {
        path for path in here.glob("real_*.py") if path.stem not in ("real_report", "real_specs")
    }
    files |= {here / "bed_rows.py", *(here.parent / "rl").glob("*.py")}
    files |= {here.parent / name for name in _ALSO}
    made = build_curriculum(spec, [_SOME_PROMPT], seed=0)
    files |= _imported(here.parent.parent, type(made).__module__)
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


_ALSO = ("sft.py", "training.py", "engines/transformers.py", "curriculum/baseline.py")
_SOME_PROMPT = Prompt.make(
    messages=[Message(role="user", content="Rab")],
    reference="ba",
    verifier="exact",
    capability="reverse",
)


def _imported(root: Path, module: str) -> set[Path]:
    """The files of a module and of all in `posttrain.curriculum` that it leads to."""
    found: set[Path] = set()
    ahead = [module]
    while ahead:
        path = root.joinpath(*ahead.pop().split(".")).with_suffix(".py")
        if path in found or not path.exists():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "posttrain.curriculum."
            ):
                ahead.append(node.module or "")
    return found
