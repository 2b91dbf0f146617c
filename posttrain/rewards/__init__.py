"""From a completion and a reference to an outcome: one verifier a file, dispatched by name."""

from posttrain.rewards.dispatch import VERIFIERS, Verifier, check_fits, verify
from posttrain.rewards.judged import settle, use_judge
from posttrain.rewards.pool import submit
from posttrain.rewards.workers import close_workers

__all__ = [
    "VERIFIERS",
    "Verifier",
    "check_fits",
    "close_workers",
    "settle",
    "submit",
    "use_judge",
    "verify",
]
