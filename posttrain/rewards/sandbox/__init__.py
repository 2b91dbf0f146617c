"""Running programs that a model wrote: one interface, several ways, none without a boundary."""

from __future__ import annotations

from posttrain.rewards.sandbox.base import Limits, Run, Sandbox, SandboxFailure
from posttrain.rewards.sandbox.choose import close_sandbox, current, limits, use

__all__ = [
    "Limits",
    "Run",
    "Sandbox",
    "SandboxFailure",
    "close_sandbox",
    "current",
    "limits",
    "use",
]
