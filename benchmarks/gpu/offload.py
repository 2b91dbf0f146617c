"""The policy moved to host memory and back, and what pinned host memory really takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from benchmarks.gpu.cases import Case, Found, NotMeasured, Setting, gigabytes, wall_seconds
from posttrain.rl.weight_sync import move

NUM_WEIGHTS = 32
PINNED_SIZES = (1_342_177_280, 671_088_640, 2_684_354_560, 85_899_346, 536_870_912)
"""Bytes: gate and up of a Scout layer's experts in fp8, down in fp8, gate and up in bf16, an nf4
scale, a power of two."""


def cases(setting: Setting) -> Mapping[str, Case]:
    """`rl.weight_sync.move`, the ways to pin, then the rounding."""
    num_bytes = 2**20 if setting.is_tiny else 20 * 10**9
    found: dict[str, Case] = {
        "move, as it is": partial(as_it_is, setting, num_bytes),
        "pinned buffers, kept": partial(pinned, setting, num_bytes, torch_pinned, no_release),
        "registered buffers, kept": partial(pinned, setting, num_bytes, registered, unregister),
        "pinned, sizes of expert weights": partial(rounding, setting, ""),
    }
    option = "pinned_use_cuda_host_register:True"
    found[f"the same, PYTORCH_ALLOC_CONF={option}"] = partial(rounding, setting, option)
    return found


def policy(setting: Setting, num_bytes: int) -> nn.Module:
    """Build frozen weights of so many bytes on the device."""
    if setting.is_cuda:
        free_host = psutil.virtual_memory().available
        free = torch.cuda.mem_get_info()[0]
        if free < 1.2 * num_bytes or free_host < 3 * num_bytes:
            raise NotMeasured(f"{gigabytes(free)} free on the device, {gigabytes(free_host)} here")
    each = num_bytes // NUM_WEIGHTS
    model = nn.Module()
    model.weights = nn.ParameterList(
        nn.Parameter(torch.ones(each, dtype=torch.uint8, device=setting.device), False)
        for _ in range(NUM_WEIGHTS)
    )
    return model


def as_it_is(setting: Setting, num_bytes: int) -> Found:
    """Time three rounds of `move`."""
    model = policy(setting, num_bytes)
    rounds: list[tuple[float, float]] = []
    for _ in range(3):
        away = wall_seconds(lambda: move(model, None, torch.device("cpu")), setting)
        back = wall_seconds(lambda: move(model, None, torch.device(setting.device)), setting)
        rounds.append((away, back))
    return told(num_bytes, rounds, 0.0)


def torch_pinned(like: Tensor) -> Tensor:
    """Allocate from torch's pinned memory."""
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)


def no_release(buffer: Tensor) -> None:
    """Leave the buffer to torch."""


def registered(like: Tensor) -> Tensor:
    """Allocate ordinary memory and have CUDA pin exactly that."""
    buffer = torch.empty(like.shape, dtype=like.dtype)
    runtime: Any = torch.cuda.cudart()
    code = int(runtime.cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0))
    if code != 0:
        raise NotMeasured(f"cudaHostRegister answered {code}")
    return buffer


def unregister(buffer: Tensor) -> None:
    """Undo `registered`."""
    runtime: Any = torch.cuda.cudart()
    runtime.cudaHostUnregister(buffer.data_ptr())


def pinned(
    setting: Setting,
    num_bytes: int,
    allocate: Callable[[Tensor], Tensor],
    release: Callable[[Tensor], None],
) -> Found:
    """Time three rounds through buffers that are allocated once."""
    if not setting.is_cuda:
        raise NotMeasured("no CUDA device to pin memory for")
    model = policy(setting, num_bytes)
    weights = list(model.parameters())
    buffers: list[Tensor] = []

    def make() -> None:
        buffers.extend(allocate(weight) for weight in weights)

    def away() -> None:
        for weight, buffer in zip(weights, buffers, strict=True):
            buffer.copy_(weight.data, non_blocking=True)
        torch.cuda.synchronize()
        for weight, buffer in zip(weights, buffers, strict=True):
            weight.data = buffer
        torch.cuda.empty_cache()

    def back() -> None:
        for weight in weights:
            weight.data = weight.data.to(setting.device, non_blocking=True)

    before = psutil.virtual_memory().available
    making = wall_seconds(make, setting)
    taken = before - psutil.virtual_memory().available
    rounds = [(wall_seconds(away, setting), wall_seconds(back, setting)) for _ in range(3)]
    right = all(bool((weight == 1).all()) for weight in weights)
    for buffer in buffers:
        release(buffer)
    found = told(num_bytes, rounds, making)
    figures = {**found.figures, "host_bytes": taken, "right": right}
    text = f"{found.text}; takes {gigabytes(taken)} of the host"
    return Found(text=text if right else text + "; WRONG values", figures=figures)


def told(num_bytes: int, rounds: list[tuple[float, float]], making: float) -> Found:
    """Describe rounds of (away, back) in seconds."""
    away, back = (min(one) for one in zip(*rounds, strict=True))
    rate = num_bytes / 1e9
    text = (
        f"{gigabytes(num_bytes)}: away {away:.3g} s ({rate / away:.1f} GB/s), "
        f"back {back:.3g} s ({rate / back:.1f} GB/s), first time {sum(rounds[0]):.3g} s"
    )
    if making:
        text += f"; buffers made in {making:.3g} s"
    return Found(text=text, figures={"bytes": num_bytes, "rounds": rounds, "making": making})


ROUNDING = """
import json, sys, psutil, torch
torch.cuda.init()
torch.empty(1, pin_memory=True)
rows, kept = [], []
for size in map(int, sys.argv[1:]):
    before, stats = psutil.virtual_memory().available, torch.cuda.host_memory_stats()
    kept.append(torch.empty(size, dtype=torch.uint8, pin_memory=True))
    kept[-1].fill_(1)
    after, now = psutil.virtual_memory().available, torch.cuda.host_memory_stats()
    key = "allocated_bytes.current"
    rows.append([size, before - after, now.get(key, 0) - stats.get(key, 0)])
print(json.dumps(rows))
"""


def rounding(setting: Setting, option: str) -> Found:
    """Pin single buffers in a fresh process and read what the host lost and torch's own count."""
    if not setting.is_cuda:
        raise NotMeasured("no CUDA device to pin memory for")
    sizes = [str(size) for size in PINNED_SIZES]
    environment = {**os.environ, **({"PYTORCH_ALLOC_CONF": option} if option else {})}
    done = subprocess.run(
        [sys.executable, "-c", ROUNDING, *sizes],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        raise NotMeasured(done.stderr.strip().splitlines()[-1])
    rows = json.loads(done.stdout)
    text = ", ".join(
        f"{gigabytes(size)} takes {gigabytes(lost)} (torch says {gigabytes(counted)})"
        for size, lost, counted in rows
    )
    return Found(text=text, figures={"size_lost_counted": rows})
