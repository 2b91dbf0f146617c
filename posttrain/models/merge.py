"""Merging an adapter into its base, tensor by tensor, on disk or in memory."""

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
from posttrain.models.moe_lora import PROJECTIONS, LoraExperts
from posttrain.models.policy import PolicyPath
from posttrain.models.quantized import fake_quantize, format_of
from posttrain.models.sharded import full_tensor

ADAPTER_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.(?P<weight>weight|gate_up_proj|down_proj)"
)


def merged_tensors(
    policy: PolicyPath, *, changed_only: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of the policy as one plain checkpoint: W + scale * B A.

    Computed in fp32 and returned in W's dtype; a W that training quantises is first quantised and
    dequantised. With `changed_only`, yield only the tensors that differ from the base's.
    """
    if changed_only and policy.adapter is None and policy.frozen is None:
        return
    deltas = {} if policy.adapter is None else adapter_deltas(policy.adapter)
    for name, weight in checkpoint_tensors(policy.base):
        format = format_of(name, policy.frozen)
        delta = deltas.pop(text_name(name), None)
        if format is not None:
            weight = fake_quantize(weight, format)
        if delta is not None:
            yield name, (weight.float() + delta()).to(weight.dtype)
        elif format is not None or not changed_only:
            yield name, weight
    if deltas:
        raise ValueError(f"{policy.adapter}: the base has no {', '.join(sorted(deltas)[:5])}")


def adapter_deltas(adapter: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """Map each weight's name in the text model to a function that computes its change, in fp32."""
    config = LoraConfig.from_pretrained(str(adapter))
    assert isinstance(config, LoraConfig)
    scale = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(adapter / "adapter_model.safetensors").items():
        match = ADAPTER_KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"{adapter}: {key} is not a LoRA weight that can be merged")
        sides.setdefault(f"{match['module']}.{match['weight']}", {})[match["side"]] = tensor.float()
    return {name: partial(_delta, scale, both["A"], both["B"]) for name, both in sides.items()}


def _delta(scale: float, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Return scale * B A of a linear layer, scale * A B of experts.

    Linear layers have A (r, in) and B (out, r), experts A (E, in, r) and B (E, r, out).
    """
    return scale * (B @ A if A.dim() == 2 else torch.bmm(A, B))


def live_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a policy in memory that training changes, under their checkpoint names.

    For a LoRA model these are the adapted layers' weights, merged with the adapter; for any other
    model all tensors. Tensors of a sharded model are gathered one by one, by all processes.
    """
    if not isinstance(model, PeftModel):
        yield from ((name, full_tensor(tensor)) for name, tensor in model.state_dict().items())
        return
    adapter = model.active_adapter
    assert isinstance(adapter, str)
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraExperts):
            for projection in PROJECTIONS:
                A, B = (full_tensor(factor) for factor in layer.factors(adapter, projection))
                weight = getattr(layer.experts, projection)
                weight = full_tensor(weight) if isinstance(weight, torch.Tensor) else weight.dense()
                yield f"{name}.{projection}", _merged(weight, layer.scaling[adapter], A, B)
        elif isinstance(layer, LoraLayer):
            sides = (layer.lora_A[adapter], layer.lora_B[adapter], layer.get_base_layer())
            A, B, weight = (full_tensor(cast(torch.Tensor, side.weight)) for side in sides)
            yield f"{name}.weight", _merged(weight, layer.scaling[adapter], A, B)


def _merged(weight: torch.Tensor, scale: float, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return (weight.float() + _delta(scale, A.float(), B.float())).to(weight.dtype)


def merge(
    policy: PolicyPath, out: Path, *, dtype: str | None = None, shard_bytes: int = 4 << 30
) -> Path:
    """Write the policy as one plain Hugging Face checkpoint and return its folder `out`.

    Shards, and the memory it takes, have at most `shard_bytes`.
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
