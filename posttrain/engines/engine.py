"""The Engine protocol: text generation and scoring, whatever runs behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from posttrain.records import FinishReason


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingRequest:
    """Sampling parameters; equal ones give equal completions from the same engine and weights."""

    num_generations: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One sampled continuation.

    >>> Completion(token_ids=[19, 2], logprobs=[-0.1, -0.01], finish_reason="stop").token_ids
    [19, 2]
    """

    token_ids: list[int]
    """(T,) with the end token, if the model wrote one."""
    logprobs: list[float]
    """(T,) natural-log probabilities under the sampling policy, at the request's temperature."""
    finish_reason: FinishReason


OnDone = Callable[[int, list[Completion]], None]
"""Callback with a prompt's index and its completions [G]."""


class Engine(Protocol):
    """Generates and scores token sequences with the newest weights it was given."""

    policy_version: int

    def generate(
        self,
        prompts_P: Sequence[list[int]],
        request: SamplingRequest,
        *,
        on_done: OnDone | None = None,
    ) -> list[list[Completion]]:
        """Sample `num_generations` completions per prompt: [P][G], in the order of the prompts.

        Calls `on_done` for each prompt as soon as its completions are finished, in any order.
        """
        ...

    def score(
        self, prefixes_N: Sequence[list[int]], continuations_N: Sequence[list[int]]
    ) -> list[list[float]]:
        """Return the log-probability (nats, temperature 1) of each continuation token."""
        ...

    def sync_weights(
        self, tensors: Iterable[tuple[str, torch.Tensor]], policy_version: int
    ) -> None:
        """Replace the weights named in `tensors` (Hugging Face checkpoint names) and no others."""
        ...

    def close(self) -> None:
        """Free the engine's memory."""
        ...


@runtime_checkable
class ServesAdapters(Protocol):
    """An engine that keeps the base's own weights and applies a LoRA adapter beside them."""

    def sync_adapter(self, adapter: Path, policy_version: int) -> None:
        """Serve the base with this adapter, in the engine's own format, and no other."""
        ...


@runtime_checkable
class Sleeps(Protocol):
    """An engine that can free its device for a while."""

    def sleep(self) -> None:
        """Move the weights to host memory and drop the caches."""
        ...

    def wake(self) -> None:
        """Move the weights back; call it before anything else after `sleep`."""
        ...
