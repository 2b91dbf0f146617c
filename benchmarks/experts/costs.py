"""FLOPs and memory of one training step, counted in a step that is not timed."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.experts.contenders import ExpertWork


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Cost of one step: forward, backward, AdamW."""

    flops: int
    """FLOPs of matrix products and attention; a multiply-add counts as two."""
    saved_bytes: int
    """Bytes saved for the backward pass, without weights."""
    peak_bytes: int
    """Peak bytes in tensors above those before the step: on the CPU by storage, on CUDA by the
    allocator."""


def cost_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    inputs: tuple[Tensor, Tensor],
    work: ExpertWork,
) -> Cost:
    """Take one step and count."""
    gc.collect()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: _grouped})
    before = _reset_peak(inputs[0])
    with TensorPeak() as peak, counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = loss_of(model, inputs, work)
        saved_bytes = sum(saved.values())
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
    peak_bytes = peak.peak_bytes
    if inputs[0].is_cuda:
        torch.cuda.synchronize()
        peak_bytes = torch.cuda.max_memory_allocated() - before
    return Cost(flops=counter.get_total_flops(), saved_bytes=saved_bytes, peak_bytes=peak_bytes)


def _reset_peak(tensor: Tensor) -> int:
    """Reset CUDA's peak; return the bytes allocated now."""
    if not tensor.is_cuda:
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def loss_of(model: nn.Module, inputs: tuple[Tensor, Tensor], work: ExpertWork) -> Tensor:
    """Compute the step's loss, under autocast in bfloat16."""
    with torch.autocast(
        inputs[0].device.type, torch.bfloat16, enabled=work.dtype == torch.bfloat16
    ):
        if work.num_layers:
            return model(input_ids=inputs[0], labels=inputs[1]).loss
        return (model(inputs[0]) * inputs[1]).sum()


class TensorPeak(TorchDispatchMode):
    """Peak of the bytes of tensors made inside, each storage from its allocation to its end."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, int] = {}
        self._bytes = 0
        self.peak_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        known = {_address(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _address(tensor) not in known:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._live:
            return
        self._live[address] = storage.nbytes()
        self._bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        weakref.finalize(storage, self._remove, address)

    def _remove(self, address: int) -> None:
        self._bytes -= self._live.pop(address, 0)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _grouped(a: list[int], b: list[int], *args: Any, **kwargs: Any) -> int:
    """Count FLOPs of rows by weights (N, K) x (E, K, O), or rows by rows (I, N) x (N, O)."""
    return 2 * a[0] * a[1] * b[-1]
