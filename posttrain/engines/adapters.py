"""A policy brought to an engine as an adapter, the base's own weights staying as they are.

So the engine's base may be quantised, and a sync moves about a two-hundredth of the weights.
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

from posttrain.engines.base import Engine, ServesAdapters
from posttrain.errors import EnvironmentFault, RecipeError
from posttrain.models import PolicyPath, live_tensors, save_policy
from posttrain.models.export import export_adapter
from posttrain.recipe.models import EngineSpec


def check_can_serve(spec: EngineSpec, base: Path, *, kind: str = "vllm") -> None:
    """Raise where engine.sync does not fit the engine, its weights or the machine.

    To be called before the engine is started: vLLM's CPU build dies of an adapter on a mixture.
    """
    if spec.sync == "weights":
        if spec.quantization is not None or spec.checkpoint is not None:
            key = "quantization" if spec.quantization is not None else "checkpoint"
            raise RecipeError(
                f"engine.{key}: quantised weights cannot take the policy's, tensor by tensor",
                hint="set engine.sync: adapter",
            )
        return
    if kind != "vllm":
        raise RecipeError(
            f"engine.sync is adapter, and the engine is {kind}: only vLLM serves adapters",
            hint="set engine.kind: vllm, or engine.sync: weights",
        )
    if not torch.cuda.is_available() and has_experts(base):
        raise EnvironmentFault(
            "engine.sync is adapter, and only on CUDA does vLLM apply adapters to a mixture of "
            "experts",
            hint="set engine.sync: weights here",
        )


def has_experts(base: Path) -> bool:
    """Whether any layer of a checkpoint is a mixture of experts."""
    config = AutoConfig.from_pretrained(base).get_text_config()
    layers = getattr(config, "moe_layers", None)
    if layers is not None:
        return len(layers) > 0
    counts = (getattr(config, name, None) for name in ("num_local_experts", "num_experts"))
    return any(count is not None and count > 1 for count in counts)


def adapter_rank(spec: EngineSpec, policy: PolicyPath, to_come: int | None) -> int | None:
    """The rank to make room for; None where no adapter will be served."""
    if spec.sync == "weights":
        return None
    if policy.adapter is None:
        return to_come
    config = json.loads((policy.adapter / "adapter_config.json").read_text())
    return max(config["r"], to_come or 0)


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
    """Bring a policy in memory to an engine; every process must call it, each with its engine.

    An adapter goes by way of the folder `scratch`, which all processes must see.
    """
    if sync == "weights":
        engine.sync_weights(live_tensors(model), policy_version=policy_version)
        return
    if not isinstance(model, PeftModel):
        raise RecipeError(
            "engine.sync is adapter, and without model.lora the policy has none",
            hint="set engine.sync: weights",
        )
    save_policy(model, scratch)
    serve_adapter(engine, scratch, base=base, policy_version=policy_version)
    PartialState().wait_for_everyone()
