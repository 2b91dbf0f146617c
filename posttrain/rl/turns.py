"""Engine and policy on one device in turns: what is not at work waits in host memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from trl import GRPOTrainer

from posttrain.engines import Engine
from posttrain.engines.engine import Sleeps


@contextmanager
def engines_turn(engine: Engine, trainer: GRPOTrainer, *, offload_policy: bool) -> Iterator[None]:
    """Let the engine have the device inside, and the trainer outside.

    An engine that cannot sleep stays where it is, as does a policy that is not to be moved.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    home = next(model.parameters()).device
    if offload_policy:
        move(model, trainer.optimizer, torch.device("cpu"))
    if isinstance(engine, Sleeps):
        engine.wake()
    yield
    if isinstance(engine, Sleeps):
        engine.sleep()
    if offload_policy:
        move(model, trainer.optimizer, home)


def move(model: nn.Module, optimizer: Any, device: torch.device) -> None:
    """Move weights, gradients and the optimizer's state; the parameters stay the same objects."""
    model.to(device)
    for state in optimizer.state.values() if optimizer is not None else ():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim() > 0:
                state[name] = value.to(device)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
