"""The battery: programs that try to get out of a sandbox, or to take more than they may."""

from __future__ import annotations

from posttrain.rewards.sandbox.attacks.attack import CANARY, Attack
from posttrain.rewards.sandbox.attacks.files import FILES, PROC
from posttrain.rewards.sandbox.attacks.kernel import KERNEL, TRACES
from posttrain.rewards.sandbox.attacks.network import NETWORK
from posttrain.rewards.sandbox.attacks.processes import PROCESSES
from posttrain.rewards.sandbox.attacks.resources import RESOURCES

__all__ = ["ATTACKS", "CANARY", "Attack"]

ATTACKS: tuple[Attack, ...] = (
    *FILES,
    *PROC,
    *NETWORK,
    *PROCESSES,
    *RESOURCES,
    *KERNEL,
    *TRACES,
)
