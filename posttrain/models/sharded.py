"""Models whose layers FSDP2 shards over the training processes; accelerate does the sharding.

Only the first process reads the weights, into host memory; the others build the model on the meta
device. When training begins, accelerate shards one layer after the other and broadcasts each
tensor, so a device never holds more than its own shards and one gathered layer. This file also
corrects what accelerate 1.15 gets wrong here; tests/test_upstream.py pins the names it relies on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.serialization import register_package

PRIORITY = 100
"""Order among torch's loaders of storage: after torch's own."""


def is_sharded_run() -> bool:
    """Return True in a stage that was started with launch.strategy: fsdp."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"


def reads_weights() -> bool:
    """Return True in the process that reads the weights of a sharded model."""
    return PartialState().is_main_process


def patch_accelerate_for_cpu() -> None:
    """Let several processes without a GPU train with FSDP2 and resume; call it before a trainer.

    accelerate shards only where its state says MULTI_GPU, and on the CPU silently trains with DDP.
    Only that word is changed: the device stays the CPU and the process group gloo. accelerate also
    numbers CPUs, and torch refuses to load an optimizer's state to a device called cpu:1.
    """
    state = PartialState()
    if state.distributed_type != DistributedType.MULTI_CPU:
        return
    register_package(PRIORITY, _tag_nothing, _restore_to_numbered_cpu)
    if is_sharded_run():
        state.distributed_type = DistributedType.MULTI_GPU


def _tag_nothing(_storage: Any) -> None:
    """Leave it to torch to say where a storage lies; by name, since torch sorts what is twice."""


def _restore_to_numbered_cpu(storage: Any, location: str) -> Any:
    """Return the storage if it belongs on a CPU, else None, as torch's own loaders do."""
    return storage if location.startswith("cpu:") else None


def configure_sharding(accelerator: Accelerator) -> None:
    """Tell accelerate how to shard; call it before training begins.

    Gradients are reduced in fp32, and outputs, the loss among them, keep their dtype: accelerate
    would use bfloat16 for both. `cpu_ram_efficient_loading` is set on the plugin and not in the
    environment, where transformers would also leave out the weights of the engines.
    """
    plugin = accelerator.state.fsdp_plugin
    assert plugin is not None
    assert plugin.fsdp_version == 2
    plugin.cpu_ram_efficient_loading = True
    if accelerator.mixed_precision == "bf16":
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32
        )


def move_trainable_off_meta(model: nn.Module) -> None:
    """Replace trainable parameters on the meta device by uninitialised ones in host memory.

    accelerate tells the optimizer's parameters apart by address, and on the meta device all have
    the same one. Memory that is never written to takes no room.
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad and parameter.is_meta:
                setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cpu")))


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor, in all processes together; return any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state_dict(model: nn.Module, is_wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Gather the wanted weights one by one into host memory of the first process.

    Every process must call it; all but the first get an empty dict.
    """
    first = PartialState().is_main_process
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if is_wanted(name):
            full = full_tensor(tensor.detach())
            if first:
                state[name] = full.cpu()
    return state
