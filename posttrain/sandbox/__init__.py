"""Run programs that a model wrote in one of several sandboxes, never without one.

The sandbox of this process is chosen on first use, after its self-test, and kept.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from posttrain.errors import SetupError
from posttrain.sandbox.base import Limits, Run, Sandbox, SandboxFailure
from posttrain.spec import Spec, wrong

if TYPE_CHECKING:
    from posttrain.sandbox.self_test import SelfTest

__all__ = [
    "Limits",
    "Run",
    "Sandbox",
    "SandboxFailure",
    "SandboxSpec",
    "choose",
    "close_sandbox",
    "current",
    "examine",
    "limits",
    "try_out",
    "use",
]

Make = Callable[[], Sandbox]

HINT = "pip install 'posttrain[sandbox]' (Linux 6.12 or newer) or 'posttrain[wasm]', then " + (
    "posttrain doctor --sandbox"
)


class SandboxSpec(Spec):
    """Sandbox for programs that the model wrote; used by the verifier `code`."""

    kind: Literal["auto", "landlock", "wasm", "docker", "http"] = "auto"
    """auto = the first of landlock and wasm that holds on this machine; none = the run stops."""
    wall_seconds: float = Field(default=5.0, gt=0.0, le=60.0)
    """Time limit of one run: all calls of a function's tests, or one test of a program."""
    memory_mib: int = Field(default=512, ge=64)
    """Memory limit of one run."""
    output_kib: int = Field(default=256, ge=64, le=1024)
    """Limit on the standard output of one run."""
    image: str = "python:3.12-slim"
    """docker: an image with python."""
    url: str | None = None
    """http: a SandboxFusion server, for example http://localhost:8080."""

    @model_validator(mode="after")
    def _endpoint(self) -> SandboxSpec:
        if (self.kind == "http") != (self.url is not None):
            raise wrong("http needs url, and nothing else takes one", "kind")
        return self


_lock = threading.Lock()
_spec = SandboxSpec()
_current: Sandbox | None = None


def use(spec: SandboxSpec) -> None:
    """Set what `current` gives from now on in this process, in place of the defaults."""
    global _spec
    with _lock:
        if spec != _spec:
            _close()
        _spec = spec


def current() -> Sandbox:
    """Return the sandbox of this process, chosen on first use; SetupError if none holds."""
    global _current
    with _lock:
        if _current is None:
            _current = choose(_spec)
        return _current


def limits(overrides: Mapping[str, float]) -> Limits:
    """Return the recipe's limits with a problem's own: `wall_seconds`, `memory_mib`."""
    memory_mib = overrides.get("memory_mib", _spec.memory_mib)
    return Limits(
        wall_seconds=overrides.get("wall_seconds", _spec.wall_seconds),
        memory_bytes=int(memory_mib * 2**20),
        output_bytes=_spec.output_kib * 2**10,
    )


def choose(
    spec: SandboxSpec,
    *,
    auto: Sequence[Make] | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Sandbox:
    """Return the sandbox that a spec asks for, after its self-test.

    `auto` lists what kind auto tries, landlock and wasm unless given; `note` gets what takes long.
    Raises SetupError where the sandbox does not hold; for auto, where none of them does.
    """
    # Recipes are checked without what the sandboxes import.
    from posttrain.sandbox.landlock import Landlock
    from posttrain.sandbox.remote import Docker, Http
    from posttrain.sandbox.wasm import Wasm

    makes: Mapping[str, Make] = {
        "landlock": Landlock,
        "wasm": Wasm,
        "docker": lambda: Docker(image=spec.image),
        "http": lambda: Http(url=spec.url or ""),
    }
    if spec.kind != "auto":
        tried: Sequence[Make] = (makes[spec.kind],)
    else:
        tried = (Landlock, Wasm) if auto is None else auto
    failures: list[str] = []
    for make in tried:
        sandbox = make()
        why = try_out(sandbox, note=note)
        if not why:
            return sandbox
        sandbox.close()
        failures.append(f"{sandbox.kind}: {why}")
    raise SetupError(
        "no sandbox holds here, and programs that a model wrote are not run without one: "
        + "; ".join(failures),
        hint=HINT,
    )


def try_out(sandbox: Sandbox, *, note: Callable[[str], None] = lambda _: None) -> str:
    """Return why a sandbox must not be used; empty where it passes its self-test, or passed it."""
    try:
        return examine(sandbox, note=note).why_not
    except SetupError as fault:
        return f"{fault.message} ({fault.hint})"


def examine(
    sandbox: Sandbox, *, fresh: bool = False, note: Callable[[str], None] = lambda _: None
) -> SelfTest:
    """Return the self-test's result: a kept one, unless `fresh`, or one made now."""
    from posttrain.sandbox.self_test import kept_self_test, self_test

    kept = None if fresh else kept_self_test(sandbox)
    if kept is not None:
        return kept
    if sandbox.slow_start:
        note(sandbox.slow_start)
    note(f"testing whether the {sandbox.kind} sandbox holds here: some seconds, once")
    return self_test(sandbox)


def close_sandbox() -> None:
    """End what the sandbox of this process keeps; the next use starts it again."""
    with _lock:
        _close()


def _close() -> None:
    global _current
    if _current is not None:
        _current.close()
    _current = None


atexit.register(close_sandbox)
