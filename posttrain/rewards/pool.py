"""Verifying many answers at once, while the engine goes on generating."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

from posttrain.records import Outcome, Prompt
from posttrain.rewards.dispatch import foregone_outcome, verify
from posttrain.rewards.judged import submit_judged
from posttrain.rewards.workers import NUM_FAST, NUM_SLOW


def submit(prompt: Prompt, text: str, *, truncated: bool = False) -> Future[Outcome]:
    """`verify` in a thread of its own; the future raises what `verify` would.

    What a model judges waits for `settle`.
    """
    if prompt.verifier == "judge" and foregone_outcome(text, truncated=truncated) is None:
        return submit_judged(prompt, text)
    return _threads().submit(verify, prompt, text, truncated=truncated)


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    # Threads wait for processes, most of them for one that hangs.
    return ThreadPoolExecutor(NUM_FAST + NUM_SLOW, thread_name_prefix="verify")
