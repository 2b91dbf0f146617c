"""One engine in its own process, measured on demand."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Literal

from posttrain.engines.base import SamplingRequest
from posttrain.errors import EnvironmentFault
from posttrain.recipe.models import EngineSpec
from posttrain.records import content_hash

Kind = Literal["posttrain", "raw", "raw-logprobs"]
Generate = Callable[[int], list[list[list[int]]]]
"""Seed -> token ids [P][G][T]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What every contender is asked to do."""

    base: Path
    spec: EngineSpec
    dtype: Literal["bfloat16", "float32"]
    prompts_P: list[list[int]]
    request: SamplingRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One pass over the work."""

    seconds: float
    num_tokens: int
    digest: str
    """Hash of all sampled token ids."""


class Contender:
    """A child process that holds an engine; leaving the context ends it."""

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
        """Generate once; the same seed samples the same tokens."""
        self._ours.send(seed)
        answer = self._receive()
        assert isinstance(answer, Measured)
        return answer

    def _receive(self) -> Measured | None:
        try:
            answer = self._ours.recv()
        except EOFError as error:
            self._process.join()
            raise EnvironmentFault(
                f"the engine of {self._name!r} died (exit code {self._process.exitcode})",
                hint="its own message stands above",
            ) from error
        assert answer is None or isinstance(answer, Measured)
        return answer


def _serve(pipe: Connection, work: Work, kind: Kind) -> None:
    """Run in the child: start, say so, then measure once for every seed that arrives."""
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
    from dataclasses import replace

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
    """vLLM as its documentation uses it, with the recipe's limits, in one process as ours."""
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
