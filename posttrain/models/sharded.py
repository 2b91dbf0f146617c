"""A model whose layers are sharded over the training processes by FSDP2, accelerate doing the work.

The first process alone reads the weights, into host memory; the others build the model on the meta
device. When training begins accelerate shards layer by layer and hands each tensor round, so no
device ever holds more than its shards and the layer at hand. What accelerate 1.15 gets wrong for
this stands here in full; tests/test_upstream.py pins the names.
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
"""After torch's own."""


def is_sharded_run() -> bool:
    """Whether this stage was started with launch.strategy: fsdp."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"


def reads_weights() -> bool:
    """Whether this process reads the weights of a model that will be sharded."""
    return PartialState().is_main_process


def mend_accelerate_on_cpu() -> None:
    """Let several processes without a GPU train, and go on; to be called before a trainer is made.

    accelerate shards where its state says MULTI_GPU, and on the CPU silently trains with DDP. Only
    that word is changed: the device stays the CPU, the process group gloo. It also numbers CPUs,
    and torch loads no optimizer's state to a device called cpu:1.
    """
    state = PartialState()
    if state.distributed_type != DistributedType.MULTI_CPU:
        return
    register_package(PRIORITY, lambda _: None, _restore_to_numbered_cpu)
    if is_sharded_run():
        state.distributed_type = DistributedType.MULTI_GPU


def _restore_to_numbered_cpu(storage: Any, location: str) -> Any:
    """As torch's own loaders: None where it is another's."""
    return storage if location.startswith("cpu:") else None


def settle_sharding(accelerator: Accelerator) -> None:
    """Say how to shard, before training begins.

    Gradients are reduced in fp32 and outputs keep their dtype, the loss's among them; accelerate
    would have both in bfloat16. That the first process reads for all is said here and not in the
    environment, where transformers would leave out the weights of the engines as well.
    """
    plugin = accelerator.state.fsdp_plugin
    assert plugin is not None
    assert plugin.fsdp_version == 2
    plugin.cpu_ram_efficient_loading = True
    if accelerator.mixed_precision == "bf16":
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32
        )


def put_trained_on_host(model: nn.Module) -> None:
    """Move what trains, and is on the meta device, to the host, without values.

    accelerate tells the optimizer's parameters apart by their addresses, and on the meta device all
    have the same. Memory that nobody writes to takes no room.
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad and parameter.is_meta:
                setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cpu")))


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor in full, gathered by all processes together; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(model: nn.Module, is_wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The wanted weights in full, one at a time; in host memory of the first process, else none.

    Every process must call it.
    """
    first = PartialState().is_main_process
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if is_wanted(name):
            full = whole(tensor.detach())
            if first:
                state[name] = full.cpu()
    return state
