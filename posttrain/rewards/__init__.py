"""The verifiers, one file each, and the way to them: a completion in, an outcome out."""

from __future__ import annotations

import dataclasses
import difflib
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

from posttrain.records import Outcome, Prompt
from posttrain.rewards.choice import CHOICE
from posttrain.rewards.code import CODE
from posttrain.rewards.exact import EXACT
from posttrain.rewards.instructions import INSTRUCTIONS
from posttrain.rewards.judged import JUDGE, use_judge
from posttrain.rewards.math import MATH
from posttrain.rewards.reasoning_gym import REASONING_GYM
from posttrain.rewards.verifier import Verifier, decided, reward_hack_flags
from posttrain.rewards.workers import NUM_FAST, NUM_SLOW, close_workers

__all__ = [
    "VERIFIERS",
    "Verifier",
    "check_reference",
    "close_workers",
    "find_verifier",
    "settle",
    "submit",
    "use_judge",
    "verify",
]

# The one list of verifiers: recipe schema, checks, docs and report derive from it.
VERIFIERS: Mapping[str, Verifier] = {
    verifier.name: verifier
    for verifier in (
        EXACT,
        MATH,
        CHOICE,
        CODE,
        INSTRUCTIONS,
        REASONING_GYM,
        JUDGE,
    )
}

_waiting: list[tuple[Prompt, str, Future[Outcome]]] = []


def find_verifier(name: str) -> Verifier:
    """Return the verifier of that name; ValueError with the nearest name where there is none."""
    if name in VERIFIERS:
        return VERIFIERS[name]
    near = difflib.get_close_matches(name, VERIFIERS, n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    raise ValueError(
        f"there is no verifier {name!r}{meant}; the verifiers are {', '.join(VERIFIERS)}"
    )


def check_reference(prompt: Prompt) -> str | None:
    """Return why the prompt's verifier cannot use its reference; None where it can."""
    try:
        verifier = find_verifier(prompt.verifier)
    except ValueError as error:
        return str(error)
    return verifier.check(prompt)


def verify(prompt: Prompt, text: str, *, truncated: bool = False) -> Outcome:
    """Decide one completion; a truncated or empty one fails, whatever it holds.

    A verifier's own failure is an outcome with passed None, never an exception. Raises ValueError
    for an unknown verifier and EnvironmentFault where its package is missing.
    """
    verifier = find_verifier(prompt.verifier)
    if outcome := _outcome_unseen(text, truncated=truncated):
        return outcome
    started = time.perf_counter()
    outcome = verifier.verify(prompt, text)
    return dataclasses.replace(
        outcome,
        seconds=time.perf_counter() - started,
        reward_hack_flags=reward_hack_flags(verifier, prompt, text),
    )


def submit(prompt: Prompt, text: str, *, truncated: bool = False) -> Future[Outcome]:
    """Start `verify` in a thread; the future raises what `verify` would.

    A verifier that decides in batches waits for `settle`.
    """
    in_batches = find_verifier(prompt.verifier).verify_batch is not None
    if not in_batches or _outcome_unseen(text, truncated=truncated) is not None:
        return _threads().submit(verify, prompt, text, truncated=truncated)
    outcome: Future[Outcome] = Future()
    _waiting.append((prompt, text, outcome))
    return outcome


def settle() -> None:
    """Decide every answer that waits, in one batch per verifier."""
    waiting = _waiting.copy()
    _waiting.clear()
    for name in dict.fromkeys(prompt.verifier for prompt, _, _ in waiting):
        verifier = find_verifier(name)
        assert verifier.verify_batch is not None
        own = [one for one in waiting if one[0].verifier == name]
        found = verifier.verify_batch([(prompt, text) for prompt, text, _ in own])
        for (prompt, text, future), outcome in zip(own, found, strict=True):
            flags = reward_hack_flags(verifier, prompt, text)
            future.set_result(dataclasses.replace(outcome, reward_hack_flags=flags))


def _outcome_unseen(text: str, *, truncated: bool) -> Outcome | None:
    """Return the outcome of an answer that no verifier needs to see; None for every other."""
    if truncated:
        return decided(False, "truncated", "truncated")
    if not text.strip():
        return decided(False, "empty", "empty")
    return None


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    # Threads wait for processes, some of them for one that hangs.
    return ThreadPoolExecutor(NUM_FAST + NUM_SLOW, thread_name_prefix="verify")
