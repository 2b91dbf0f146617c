"""Which sandbox this process uses, and with which limits."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Mapping, Sequence

from posttrain.errors import EnvironmentFault
from posttrain.recipe.deciding import SandboxSpec
from posttrain.rewards.sandbox.base import Limits, Sandbox
from posttrain.rewards.sandbox.docker import Docker
from posttrain.rewards.sandbox.http import Http
from posttrain.rewards.sandbox.landlock import Landlock
from posttrain.rewards.sandbox.self_test import SelfTest, kept_self_test, self_test
from posttrain.rewards.sandbox.wasm import Wasm

Make = Callable[[], Sandbox]

HINT = "pip install 'posttrain[sandbox]' (Linux 6.12 or newer) or 'posttrain[wasm]', then " + (
    "posttrain doctor --sandbox"
)
AUTO: tuple[Make, ...] = (Landlock, Wasm)
"""What auto tries, in this order."""

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
    """The sandbox of this process, chosen on first use and kept.

    Raises EnvironmentFault where none holds.
    """
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


def choose(
    spec: SandboxSpec,
    *,
    auto: Sequence[Make] = AUTO,
    note: Callable[[str], None] = lambda _: None,
) -> Sandbox:
    """The sandbox that a spec asks for, after its self-test.

    `note` is told what takes long. Raises EnvironmentFault where it does not hold; for auto, where
    none of those that it tries does.
    """
    makes: Mapping[str, Make] = {
        "landlock": Landlock,
        "wasm": Wasm,
        "docker": lambda: Docker(image=spec.image),
        "http": lambda: Http(url=spec.url or ""),
    }
    failures: list[str] = []
    for make in auto if spec.kind == "auto" else (makes[spec.kind],):
        sandbox = make()
        why = try_out(sandbox, note=note)
        if not why:
            return sandbox
        sandbox.close()
        failures.append(f"{sandbox.kind}: {why}")
    raise EnvironmentFault(
        "no sandbox holds here, and programs that a model wrote are not run without one: "
        + "; ".join(failures),
        hint=HINT,
    )


def try_out(sandbox: Sandbox, *, note: Callable[[str], None] = lambda _: None) -> str:
    """Why a sandbox is not to be used; empty where it holds, now or by an earlier self-test."""
    try:
        return examine(sandbox, note=note).why_not
    except EnvironmentFault as fault:
        return f"{fault.message} ({fault.hint})"


def examine(
    sandbox: Sandbox, *, fresh: bool = False, note: Callable[[str], None] = lambda _: None
) -> SelfTest:
    """The self-test's result, kept or made now."""
    kept = None if fresh else kept_self_test(sandbox)
    if kept is not None:
        return kept
    if isinstance(sandbox, Wasm) and not sandbox.compiled:
        note("the wasm sandbox compiles its interpreter: about a minute, once")
    note(f"testing whether the {sandbox.kind} sandbox holds here: some seconds, once")
    return self_test(sandbox)


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
