"""Send a policy to an engine: weight by weight, or as a LoRA adapter on the base.

With an adapter the engine's base may be quantised, and a sync moves about 1/200 of the weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from accelerate import PartialState
from peft import PeftModel
from torch import nn
from transformers import AutoConfig

from posttrain.engines.engine import Engine, ServesAdapters
from posttrain.errors import RecipeError, SetupError
from posttrain.models import PolicyPath, live_tensors, save_policy
from posttrain.models.export import export_adapter
from posttrain.recipe.models import EngineSpec


def check_sync(spec: EngineSpec, base: Path, *, kind: Literal["vllm", "transformers"]) -> None:
    """Raise if engine.sync does not suit the engine, its weights or the machine.

    Call it before the engine starts: vLLM's CPU build crashes on an adapter for a mixture of
    experts. Raises RecipeError or, where a GPU is missing, SetupError.
    """
    if spec.sync == "weights":
        if spec.quantization is not None or spec.checkpoint is not None:
            key = "quantization" if spec.quantization is not None else "checkpoint"
            raise RecipeError(
                f"engine.{key}: quantised weights cannot be replaced by the policy's weights",
                hint="set engine.sync: adapter",
            )
        return
    if kind != "vllm":
        raise RecipeError(
            f"engine.sync is adapter, but the engine is {kind}: only vLLM serves adapters",
            hint="set engine.kind: vllm, or engine.sync: weights",
        )
    if not torch.cuda.is_available() and has_experts(base):
        raise SetupError(
            "engine.sync is adapter, but vLLM has adapters for a mixture of experts on CUDA only",
            hint="set engine.sync: weights on this machine",
        )


def has_experts(base: Path) -> bool:
    """Return True if any layer of a checkpoint is a mixture of experts."""
    config = AutoConfig.from_pretrained(base).get_text_config()
    layers = getattr(config, "moe_layers", None)
    if layers is not None:
        return len(layers) > 0
    counts = (getattr(config, name, None) for name in ("num_local_experts", "num_experts"))
    return any(count is not None and count > 1 for count in counts)


def max_lora_rank(spec: EngineSpec, policy: PolicyPath, expected: int | None) -> int | None:
    """Return the highest adapter rank to be served, None without adapters.

    `expected` is the rank of adapters that will be synced later.
    """
    if spec.sync == "weights":
        return None
    if policy.adapter is None:
        return expected
    config = json.loads((policy.adapter / "adapter_config.json").read_text())
    return max(config["r"], expected or 0)


def serve_adapter(engine: Engine, adapter: Path, *, base: Path, policy_version: int) -> None:
    """Give a saved adapter to an engine, in the engine's own format."""
    assert isinstance(engine, ServesAdapters)
    with TemporaryDirectory() as folder:
        exported = export_adapter(adapter, Path(folder), base=base, reader="vllm")
        engine.sync_adapter(exported, policy_version=policy_version)


def sync_policy(
    engine: Engine,
    model: nn.Module,
    *,
    sync: Literal["weights", "adapter"],
    base: Path,
    scratch: Path,
    policy_version: int,
) -> None:
    """Sync a policy in memory to an engine; every process must call it, each with its own engine.

    An adapter is passed through the folder `scratch`, which all processes must be able to read.
    """
    if sync == "weights":
        engine.sync_weights(live_tensors(model), policy_version=policy_version)
        return
    assert isinstance(model, PeftModel), "a recipe with engine.sync: adapter has model.lora"
    save_policy(model, scratch)
    serve_adapter(engine, scratch, base=base, policy_version=policy_version)
    PartialState().wait_for_everyone()
