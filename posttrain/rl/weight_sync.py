"""The policy's weights on the engine: turns on the device, syncs, and their parity."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from trl import GRPOTrainer

from posttrain.engines import Engine
from posttrain.engines.engine import Sleeps
from posttrain.engines.parity import ExpectedLogprobs, check_parity, expected_logprobs
from posttrain.engines.sync import sync_policy
from posttrain.kill_points import kill_point
from posttrain.recipe.models import EngineSpec
from posttrain.tables import MetricsLog

Continuation = tuple[list[int], list[int]]
"""Tokens of a prefix, and those that follow it."""


class WeightSync:
    """Brings the trainer's weights to an engine before it generates, and records their parity.

    Engine and policy may share one device: one that sleeps, the other in host memory.
    """

    def __init__(
        self, engine: Engine, spec: EngineSpec, *, base: Path, offload_policy: bool, work_dir: Path
    ) -> None:
        self._engine, self._spec = engine, spec
        self._base, self._offload_policy = base, offload_policy
        self._scratch = work_dir / "synced"
        self._log = MetricsLog(work_dir / "parity.jsonl")

    @contextmanager
    def engine_turn(
        self, trainer: GRPOTrainer, sequences: Sequence[Continuation]
    ) -> Iterator[None]:
        """Give the engine the device inside, with the trainer's weights, and the trainer outside.

        The first few of `sequences` are scored by both for parity; HealthStop if they differ. An
        engine that cannot sleep stays where it is, as does a policy that is not to be moved.
        """
        is_stale = trainer.state.global_step != self._engine.policy_version
        # Before the policy leaves the device.
        expected = self.expected(trainer, sequences) if is_stale else None
        model = trainer.accelerator.unwrap_model(trainer.model)
        home = next(model.parameters()).device
        if self._offload_policy:
            move(model, trainer.optimizer, torch.device("cpu"))
        if isinstance(self._engine, Sleeps):
            self._engine.wake()
        if expected is not None:
            self._sync(trainer, expected)
        yield
        if isinstance(self._engine, Sleeps):
            self._engine.sleep()
        if self._offload_policy:
            move(model, trainer.optimizer, home)

    def expected(self, trainer: GRPOTrainer, sequences: Sequence[Continuation]) -> ExpectedLogprobs:
        """Return the trainer's log-probabilities of some sequences; every process must call it."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        return expected_logprobs(model, [p for p, _ in sequences], [c for _, c in sequences])

    def rewind(self, step: int) -> None:
        """Forget the parity recorded at `step` and later."""
        self._log.rewind(step - 1)

    def _sync(self, trainer: GRPOTrainer, expected: ExpectedLogprobs) -> None:
        started = time.monotonic()
        step = trainer.state.global_step
        sync_policy(
            self._engine,
            trainer.accelerator.unwrap_model(trainer.model),
            sync=self._spec.sync,
            base=self._base,
            scratch=self._scratch,
            policy_version=step,
        )
        seconds = time.monotonic() - started
        parity = check_parity(self._engine, expected, tolerance=self._spec.parity_tolerance)
        if trainer.accelerator.is_main_process:
            self._log.append(
                step,
                {
                    "parity/mean": parity.mean,
                    "parity/max": parity.max,
                    "parity/num_tokens": parity.num_tokens,
                    "parity/sync_seconds": seconds,
                },
            )
        kill_point("rl.after_sync")


def move(model: nn.Module, optimizer: Any, device: torch.device) -> None:
    """Move weights, gradients and the optimizer's state; the parameters stay the same objects."""
    model.to(device)
    for state in optimizer.state.values() if optimizer is not None else ():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim() > 0:
                state[name] = value.to(device)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
