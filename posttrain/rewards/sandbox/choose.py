"""Which sandbox this process uses, and with which limits."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping

from posttrain.recipe.schema import SandboxSpec
from posttrain.rewards.sandbox.base import Limits, Sandbox
from posttrain.rewards.sandbox.landlock import Landlock

_lock = threading.Lock()
_spec = SandboxSpec()
_current: Sandbox | None = None


def use(spec: SandboxSpec) -> None:
    """Say what `current` gives from now on in this process; without it, the recipe's defaults."""
    global _spec
    with _lock:
        if spec != _spec:
            _close()
        _spec = spec


def current() -> Sandbox:
    """The sandbox of this process, chosen on first use and kept."""
    global _current
    with _lock:
        if _current is None:
            _current = choose(_spec)
        return _current


def limits(overrides: Mapping[str, float]) -> Limits:
    """The recipe's limits with a problem's own: `wall_seconds`, `memory_mib`."""
    memory_mib = overrides.get("memory_mib", _spec.memory_mib)
    return Limits(
        wall_seconds=overrides.get("wall_seconds", _spec.wall_seconds),
        memory_bytes=int(memory_mib * 2**20),
        output_bytes=_spec.output_kib * 2**10,
    )


def choose(spec: SandboxSpec) -> Sandbox:
    """The sandbox that a spec asks for."""
    return Landlock()


def close_sandbox() -> None:
    """End what the sandbox of this process keeps; the next use starts it anew."""
    with _lock:
        _close()


def _close() -> None:
    global _current
    if _current is not None:
        _current.close()
    _current = None


atexit.register(close_sandbox)
