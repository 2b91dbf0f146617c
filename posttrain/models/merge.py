"""Adapters folded into their base, tensor by tensor."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn

from posttrain.models.checkpoint import checkpoint_tensors, text_name
from posttrain.models.expert_lora import PROJECTIONS, LoraExperts
from posttrain.models.packed import format_of, repacked
from posttrain.models.policy import PolicyPath
from posttrain.models.sharded import whole

ADAPTER_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.(?P<weight>weight|gate_up_proj|down_proj)"
)


def merged_tensors(
    policy: PolicyPath, *, changed_only: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the policy as one plain checkpoint: W + scale * B A.

    Computed in fp32, given in W's dtype; a W that training keeps packed is what that unpacks to.
    With `changed_only` just the tensors in which the policy differs from its base.
    """
    if changed_only and policy.adapter is None and policy.frozen is None:
        return
    deltas = {} if policy.adapter is None else adapter_deltas(policy.adapter)
    for name, weight in checkpoint_tensors(policy.base):
        format = format_of(name, policy.frozen)
        delta = deltas.pop(text_name(name), None)
        if format is not None:
            weight = repacked(weight, format)
        if delta is not None:
            yield name, (weight.float() + delta()).to(weight.dtype)
        elif format is not None or not changed_only:
            yield name, weight
    if deltas:
        raise ValueError(f"{policy.adapter}: no base weight for {', '.join(sorted(deltas)[:5])}")


def adapter_deltas(adapter: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """Weight's name in the text model -> what a saved adapter adds to it, in fp32.

    Each is computed when it is called for.
    """
    config = LoraConfig.from_pretrained(str(adapter))
    assert isinstance(config, LoraConfig)
    scale = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(adapter / "adapter_model.safetensors").items():
        match = ADAPTER_KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"{adapter}: {key} is no LoRA weight that can be merged")
        sides.setdefault(f"{match['module']}.{match['weight']}", {})[match["side"]] = tensor.float()
    return {name: partial(_delta, scale, both["A"], both["B"]) for name, both in sides.items()}


def _delta(scale: float, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Linear layers have A (r, in) and B (out, r), experts A (E, in, r) and B (E, r, out)."""
    return scale * (B @ A if A.dim() == 2 else torch.bmm(A, B))


def live_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a policy in memory that training changes, named as in the base's checkpoint.

    For a LoRA model these are the adapted layers' weights, adapter folded in; for any other model
    all tensors. Of a sharded model each is put together when it is its turn, by all processes.
    """
    if not isinstance(model, PeftModel):
        yield from ((name, whole(tensor)) for name, tensor in model.state_dict().items())
        return
    adapter = model.active_adapter
    assert isinstance(adapter, str)
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraExperts):
            for projection in PROJECTIONS:
                A, B = (whole(factor) for factor in layer.factors(adapter, projection))
                weight = getattr(layer.experts, projection)
                weight = whole(weight) if isinstance(weight, torch.Tensor) else weight.dense()
                yield f"{name}.{projection}", _folded(weight, layer.scaling[adapter], A, B)
        elif isinstance(layer, LoraLayer):
            sides = (layer.lora_A[adapter], layer.lora_B[adapter], layer.get_base_layer())
            A, B, weight = (whole(cast(torch.Tensor, side.weight)) for side in sides)
            yield f"{name}.weight", _folded(weight, layer.scaling[adapter], A, B)


def _folded(weight: torch.Tensor, scale: float, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return (weight.float() + _delta(scale, A.float(), B.float())).to(weight.dtype)


def merge(
    policy: PolicyPath, out: Path, *, dtype: str | None = None, shard_bytes: int = 4 << 30
) -> Path:
    """Write the policy as one plain Hugging Face checkpoint, in shards.

    At most `shard_bytes` of it are in memory at a time.
    """
    out.mkdir(parents=True, exist_ok=True)
    for file in policy.base.iterdir():
        if file.suffix in {".json", ".jinja", ".model", ".txt"} and not file.name.startswith(
            "model.safetensors"
        ):
            shutil.copy2(file, out / file.name)
    shards: list[Path] = []
    weight_map: dict[str, int] = {}
    pending: dict[str, torch.Tensor] = {}
    num_bytes = total = 0

    def flush() -> None:
        shards.append(out / f"shard-{len(shards)}.tmp")
        save_file(pending, shards[-1], metadata={"format": "pt"})
        pending.clear()

    for name, tensor in merged_tensors(policy):
        tensor = tensor.to(getattr(torch, dtype)) if dtype else tensor
        size = tensor.numel() * tensor.element_size()
        if pending and num_bytes + size > shard_bytes:
            flush()
            num_bytes = 0
        pending[name] = tensor.contiguous()
        weight_map[name] = len(shards)
        num_bytes += size
        total += size
    flush()
    if len(shards) == 1:
        shards[0].rename(out / "model.safetensors")
        return out
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for shard, name in zip(shards, names, strict=True):
        shard.rename(out / name)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {k: names[i] for k, i in weight_map.items()},
    }
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return out
