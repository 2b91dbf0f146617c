"""Run by torchrun: two processes train routed-expert LoRA; rank 0 writes loss and gradients.

Arguments: the base, a folder, and what to train by, `ddp` or `fsdp2` or both.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from posttrain.models import PolicyPath, load_policy
from posttrain.recipe.models import Lora, LoraTarget, Model

TARGETS: list[LoraTarget] = ["attention", "shared_expert", "experts"]


def batch() -> torch.Tensor:
    """Four sequences of equal length, so that the mean of two halves is the whole's."""
    return torch.randint(5, 300, (4, 24), generator=torch.Generator().manual_seed(0))


def adapted(base: Path) -> torch.nn.Module:
    """The tiny model with an adapter that is not the identity, the same in every process."""
    spec = Model(base=str(base), dtype="float32", lora=Lora(rank=4, alpha=16, targets=TARGETS))
    torch.manual_seed(0)
    model = load_policy(PolicyPath(base=base), spec, trainable=True).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every gradient in full, under the names of the model on its own."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad
            full = grad.full_tensor() if isinstance(grad, DTensor) else grad
            found[name.removeprefix("module.")] = full
    return found


def step(base: Path, kind: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The mean loss of all ranks and the gradients of one step on this rank's half."""
    model = adapted(base)
    if kind == "ddp":
        model = DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (2,))
        for layer in cast(Any, model).get_base_model().model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    ids = batch().chunk(2)[dist.get_rank()]
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return mean / 2, gradients(model)


def main(base: Path, out: Path, kinds: list[str]) -> None:
    """One step of each kind; rank 0 keeps what came of it.

    The model must be gone before the group is: a DDP model that is a gloo group's last owner frees
    it with the interpreter's lock held, while the group's own thread waits for that lock.
    """
    dist.init_process_group("gloo")
    for kind in kinds:
        loss, found = step(base, kind)
        if dist.get_rank() == 0:
            torch.save({"loss": loss, "gradients": found}, out / f"{kind}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
