"""Adapters folded into their base, tensor by tensor."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from posttrain.models.policy import PolicyPath

ADAPTER_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


def _shards(base: Path) -> list[str]:
    index = base / "model.safetensors.index.json"
    if index.exists():
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return ["model.safetensors"]


def checkpoint_shapes(base: Path) -> dict[str, list[int]]:
    """The shape of every tensor of a safetensors checkpoint, from the headers alone."""
    shapes: dict[str, list[int]] = {}
    for shard in _shards(base):
        with safe_open(base / shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                shapes[name] = tensors.get_slice(name).get_shape()
    return shapes


def checkpoint_tensors(base: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a safetensors checkpoint under its own name, one shard open at a time."""
    for shard in _shards(base):
        with safe_open(base / shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                yield name, tensors.get_tensor(name)


def merged_tensors(
    policy: PolicyPath, *, changed_only: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the policy as one plain checkpoint: W + scale * B A.

    Computed in fp32, given in W's dtype. With `changed_only` just the tensors in which the policy
    differs from its base.
    """
    if policy.adapter is None:
        yield from () if changed_only else checkpoint_tensors(policy.base)
        return
    config = LoraConfig.from_pretrained(str(policy.adapter))
    assert isinstance(config, LoraConfig)
    scale = config.lora_alpha / config.r
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(policy.adapter / "adapter_model.safetensors").items():
        match = ADAPTER_KEY.fullmatch(key)
        if match is None:
            raise ValueError(
                f"{policy.adapter}: {key} is no LoRA weight of a linear layer; it cannot be merged"
            )
        sides.setdefault(match["module"], {})[match["side"]] = tensor.float()
    for name, weight in checkpoint_tensors(policy.base):
        lora = sides.pop(_module_name(name), None)
        if lora is not None:
            yield name, (weight.float() + scale * (lora["B"] @ lora["A"])).to(weight.dtype)
        elif not changed_only:
            yield name, weight
    if sides:
        raise ValueError(f"{policy.adapter}: no base weight for {', '.join(sorted(sides)[:5])}")


def _module_name(tensor_name: str) -> str:
    """The text model's name of a weight's module: a multimodal checkpoint's prefix left off."""
    return tensor_name.removesuffix(".weight").replace("language_model.model.", "model.")


def live_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a policy in memory that training changes, named as in the base's checkpoint.

    For a LoRA model these are the adapted layers' weights, adapter folded in; for any other model
    all tensors.
    """
    if not isinstance(model, PeftModel):
        yield from model.state_dict().items()
        return
    adapter = model.active_adapter
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight
            delta = layer.get_delta_weight(adapter)  # pyright: ignore[reportAttributeAccessIssue] every subclass has it
            yield f"{name}.weight", (weight.float() + delta.float()).to(weight.dtype)


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
