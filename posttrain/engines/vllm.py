"""vLLM in this process: the CPU build and the CUDA build through the same calls.

This file has all private names of vLLM that posttrain uses; tests/test_upstream.py pins them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import nn

from posttrain.engines.engine import Completion, OnDone, SamplingRequest
from posttrain.errors import RecipeError
from posttrain.recipe.models import EngineSpec

# vLLM reads these when it is imported: one process (weights are passed in memory), no thread
# pinning (the trainer's threads share the cores), quiet.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
if not torch.cuda.is_available():
    # On the CPU only the sampler would be compiled: twenty seconds of C++ compilation for nothing.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import vllm
from vllm.config.lora import MaxLoRARanks
from vllm.config.model import ModelDType
from vllm.logprobs import LogprobsOnePosition
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.platforms import current_platform
from vllm.v1.worker.gpu_worker import Worker

ADAPTED = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    *("experts", "router"),
)
"""Layers that may have an adapter. vLLM would add the head, which posttrain never adapts, and then
the CPU build cannot score prompts."""

QUANTIZE_ON_LOAD: Mapping[str, Any] = {"fp8": "fp8_per_tensor"}
"""engine.quantization -> vLLM's name for it. vLLM's `fp8` means an already quantised checkpoint."""


class VllmEngine:
    """An Engine on `vllm.LLM`, deterministic for the same seed, weights and batch.

    Inside an RL stage of several processes, tensor_parallel_size N joins N of them into one engine:
    all must make the same calls, and all get the results. In a stage of one process vLLM starts its
    own workers instead.
    """

    def __init__(
        self, model: Path, spec: EngineSpec, *, dtype: str, seed: int, lora_rank: int | None = None
    ) -> None:
        self._on_cpu = current_platform.is_cpu()
        if self._on_cpu:
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(spec.kv_cache_gib)))
        threads = torch.get_num_threads()
        self._llm = vllm.LLM(
            model=spec.checkpoint or str(model),
            tokenizer=str(model),
            dtype=cast(ModelDType, dtype),
            seed=seed,
            max_model_len=spec.max_model_len,
            max_num_seqs=spec.max_num_seqs,
            # A group's generations share their prompt block by block. The CPU build's default block
            # of 128 tokens would share nothing of a short prompt.
            block_size=32 if self._on_cpu else None,
            enforce_eager=self._on_cpu,
            gpu_memory_utilization=spec.gpu_memory_utilization,
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
            quantization=QUANTIZE_ON_LOAD[spec.quantization] if spec.quantization else None,
            enable_sleep_mode=spec.enable_sleep_mode and not self._on_cpu,
            **_devices(spec),
            **_adapters(lora_rank),
        )
        torch.set_num_threads(threads)
        self._max_model_len = spec.max_model_len
        self._can_sleep = spec.enable_sleep_mode and not self._on_cpu
        self._has_worker_processes = spec.tensor_parallel_size > 1 and not _is_distributed()
        self._lora: LoRARequest | None = None
        self.policy_version = 0

    def generate(
        self,
        prompts_P: Sequence[list[int]],
        request: SamplingRequest,
        *,
        on_done: OnDone | None = None,
    ) -> list[list[Completion]]:
        """Sample; the seed is the engine's, since the CPU build takes none per sequence."""
        params = vllm.SamplingParams(
            n=request.num_generations,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            logprobs=0,
            detokenize=False,
        )
        with torch.random.fork_rng():
            self._llm.collective_rpc(_seed, args=(request.seed,))
            names = self._llm.enqueue(
                _token_prompts(prompts_P), params, use_tqdm=False, lora_request=self._lora
            )
            return self._finish(names, on_done)

    def _finish(self, names: Sequence[str], on_done: OnDone | None) -> list[list[Completion]]:
        """Step the engine until all of these requests are finished.

        `LLM.wait_for_completion` does the same, but returns nothing before the last is finished.
        """
        # A request's name is its number with a random part added; its output has only the number.
        index = {name.partition("-")[0]: i for i, name in enumerate(names)}
        done: dict[int, list[Completion]] = {}
        engine = self._llm.llm_engine
        while engine.has_unfinished_requests():
            for output in engine.step():
                assert isinstance(output, vllm.RequestOutput)
                if not output.finished:
                    continue
                i = index[output.request_id]
                done[i] = [_completion(choice) for choice in output.outputs]
                if on_done is not None:
                    on_done(i, done[i])
        return [done[i] for i in range(len(names))]

    def score(
        self, prefixes_N: Sequence[list[int]], continuations_N: Sequence[list[int]]
    ) -> list[list[float]]:
        """Return log-probabilities from a prefill over prefix and continuation."""
        params = vllm.SamplingParams(
            max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False
        )
        sequences_N = [p + c for p, c in zip(prefixes_N, continuations_N, strict=True)]
        outputs = self._llm.generate(
            _token_prompts(sequences_N), params, use_tqdm=False, lora_request=self._lora
        )
        scores: list[list[float]] = []
        for prefix, output in zip(prefixes_N, outputs, strict=True):
            assert output.prompt_logprobs is not None
            assert output.prompt_token_ids is not None
            ids = output.prompt_token_ids
            positions = range(len(prefix), len(ids))
            scores.append([_logprob(output.prompt_logprobs[i], ids[i]) for i in positions])
        return scores

    def sync_weights(
        self, tensors: Iterable[tuple[str, torch.Tensor]], policy_version: int
    ) -> None:
        """Reload these weights in place, repack experts on the CPU, drop cached prefixes.

        Tensors are taken one at a time; workers in their own processes get all of them at once.
        """
        given = list(tensors) if self._has_worker_processes else tensors
        with torch.random.fork_rng(), torch.no_grad():
            self._llm.collective_rpc(_reload, args=(given,))
        self._llm.reset_prefix_cache()
        self.policy_version = policy_version

    def sync_adapter(self, adapter: Path, policy_version: int) -> None:
        """Load an adapter that `export_adapter` wrote for vLLM, in place of the one before.

        Each gets a new number, by which vLLM keeps cached prefixes apart. The folder is not needed
        afterwards.
        """
        number = self._lora.lora_int_id + 1 if self._lora else 1
        request = LoRARequest(f"policy-{number}", number, str(adapter))
        before, self._lora = self._lora, request
        if before is not None:
            self._llm.llm_engine.remove_lora(before.lora_int_id)
        self._llm.llm_engine.add_lora(request)
        self._llm.reset_prefix_cache()
        self.policy_version = policy_version

    def sleep(self) -> None:
        """Move weights to host memory and drop the KV cache, if engine.enable_sleep_mode is set."""
        if self._can_sleep:
            self._llm.sleep(level=1)

    def wake(self) -> None:
        """Move weights back to the device, if engine.enable_sleep_mode is set."""
        if self._can_sleep:
            self._llm.wake_up()
            self._llm.reset_prefix_cache()

    def close(self) -> None:
        """Free the engine and its caches."""
        del self._llm


def _is_distributed() -> bool:
    """Return True if this process is one of several that were launched together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _devices(spec: EngineSpec) -> dict[str, Any]:
    """Return vLLM's arguments for the devices that one engine spans."""
    size = spec.tensor_parallel_size
    if size == 1:
        return {}
    shared = {"distributed_executor_backend": "external_launcher"} if _is_distributed() else {}
    return {"tensor_parallel_size": size, **shared}


def _adapters(rank: int | None) -> dict[str, Any]:
    """Return vLLM's arguments for one adapter, its rank rounded up to one that has kernels."""
    if rank is None:
        return {}
    fitting = [size for size in sorted(get_args(MaxLoRARanks)) if size >= rank]
    if not fitting:
        raise RecipeError(
            f"engine.sync: vLLM serves adapters up to rank {max(get_args(MaxLoRARanks))}, but "
            f"model.lora.rank is {rank}",
            hint="lower the rank, or set engine.sync: weights",
        )
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_cpu_loras": 1,
        "max_lora_rank": fitting[0],
        "lora_target_modules": list(ADAPTED),
    }


def _seed(worker: Worker, seed: int) -> None:
    """Seed a worker; vLLM calls this inside each of them."""
    torch.manual_seed(seed)


def _token_prompts(prompts_P: Sequence[list[int]]) -> list[vllm.TokensPrompt]:
    return [vllm.TokensPrompt(prompt_token_ids=ids) for ids in prompts_P]


def _logprob(position: LogprobsOnePosition | None, token: int) -> float:
    # vLLM gives None only for the first token of a sequence, which is never asked for.
    assert position is not None
    return position[token].logprob


def _completion(choice: vllm.CompletionOutput) -> Completion:
    ids = list(choice.token_ids)
    assert choice.logprobs is not None
    logprobs = [_logprob(step, token) for step, token in zip(choice.logprobs, ids, strict=True)]
    reason = "length" if choice.finish_reason == "length" else "stop"
    return Completion(token_ids=ids, logprobs=logprobs, finish_reason=reason)


def _reload(worker: Worker, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Reload weights in checkpoint format and pack CPU experts; vLLM calls it inside each worker.

    vLLM's reload leaves CPU experts in the plain layout, which has the same shape as the packed one
    that the kernel reads: nothing raises and every answer is wrong. So vLLM's own packing is run
    again.
    """
    runner = worker.model_runner
    reloaded: set[str] = set()

    def recorded() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in tensors:
            if ".experts." in name:
                reloaded.add(name.split(".experts.")[0] + ".experts.")
            yield name, tensor

    runner.reload_weights(weights_iterator=recorded())
    for name, layer in runner.get_model().named_modules():
        experts = _cpu_experts(layer)
        if experts is not None and any(prefix in name + "." for prefix in reloaded):
            pack_experts(experts, layer)


def _cpu_experts(layer: nn.Module) -> CPUUnquantizedExperts | None:
    """Return the CPU kernel of a routed-experts layer, None for any other module."""
    if not isinstance(layer, RoutedExperts):
        return None
    kernel = layer.quant_method.moe_kernel
    assert kernel is not None
    experts = kernel.fused_experts
    return experts if isinstance(experts, CPUUnquantizedExperts) else None


def pack_experts(experts: CPUUnquantizedExperts, layer: nn.Module) -> None:
    """Pack a layer's plain expert weights into the layout that its kernel reads."""
    experts.process_weights_after_loading(layer)
