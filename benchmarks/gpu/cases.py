"""What a point measures: cases that fail on their own, and how they time and compare."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """Where and at which size to measure."""

    device: str
    """cuda or cpu; on the CPU the figures say nothing of a GPU."""
    is_tiny: bool
    """Shapes of a few thousand weights, to try out the code, in place of Scout's."""

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device == "cuda"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The outcome of one case."""

    text: str
    """The table's cell."""
    figures: Mapping[str, Any]
    """The same and more, as JSON values."""


class NotMeasured(Exception):
    """A case that cannot be measured here; the message says why."""


Case = Callable[[], Found]
"""Raises NotMeasured, or anything else, where it cannot be measured."""


def median_seconds(
    run: Callable[[], object], setting: Setting, *, repeats: int = 10, warmups: int = 2
) -> float:
    """Return the median seconds of `run`, on CUDA between events."""
    for _ in range(warmups):
        run()
    return statistics.median(one_run_seconds(run, setting) for _ in range(repeats))


def one_run_seconds(run: Callable[[], object], setting: Setting) -> float:
    """Return the seconds of one run, with the device idle before and after."""
    if not setting.is_cuda:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    run()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1e3


def wall_seconds(run: Callable[[], object], setting: Setting) -> float:
    """Return the seconds of one run on the host's clock, the device's work included."""
    if setting.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if setting.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_bytes(run: Callable[[], object], setting: Setting) -> int:
    """Return the most bytes that `run` had allocated above what was there; 0 on the CPU."""
    if not setting.is_cuda:
        run()
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Return |found - reference| / |reference| in fp32; not finite where `found` is not."""
    reference = reference.float()
    return float((found.float() - reference).norm() / reference.norm())


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds with three digits."""
    return f"{seconds * 1e3:.3g} ms"


def gigabytes(num_bytes: float) -> str:
    """Return bytes as decimal gigabytes."""
    return f"{num_bytes / 1e9:.3g} GB"
