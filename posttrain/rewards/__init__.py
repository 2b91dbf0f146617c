"""The verifiers, one file each, and the way to them: a completion in, an outcome out."""

from __future__ import annotations

import dataclasses
import difflib
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

from posttrain.errors import RecipeError
from posttrain.records import Outcome, Prompt
from posttrain.rewards.choice import CHOICE
from posttrain.rewards.code import CODE
from posttrain.rewards.exact import EXACT
from posttrain.rewards.instructions import INSTRUCTIONS
from posttrain.rewards.judged import JUDGE, use_judge
from posttrain.rewards.math import MATH
from posttrain.rewards.python import UserFunction, make_verifier
from posttrain.rewards.reasoning_gym import REASONING_GYM
from posttrain.rewards.verifier import Verifier, decided, reward_hack_flags
from posttrain.rewards.workers import NUM_FAST, NUM_SLOW, close_workers

__all__ = [
    "VERIFIERS",
    "UserFunction",
    "Verifier",
    "check_reference",
    "close_workers",
    "find_verifier",
    "settle",
    "submit",
    "submit_group",
    "use_functions",
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

_Waiting = tuple[Prompt, str, Future[Outcome]]
_waiting: list[_Waiting] = []
_functions: dict[str, UserFunction] = {}


def use_functions(functions: Iterable[UserFunction]) -> None:
    """Set the user's functions that are verifiers of this process; each loads when it is used.

    Prompts name them by `UserFunction.name`, so that a table alone makes no code run. Raises
    RecipeError where two differ and have the same name.
    """
    _functions.clear()
    _loaded.cache_clear()
    for function in functions:
        if _functions.setdefault(function.name, function) != function:
            raise RecipeError(
                f"two functions are called {function.name}, and they differ",
                hint="write the same keys for both, or rename one of the files",
            )


def find_verifier(name: str) -> Verifier:
    """Return the verifier of that name; ValueError with the nearest name where there is none."""
    if name in VERIFIERS:
        return VERIFIERS[name]
    if name in _functions:
        return _loaded(name)
    if ":" in name:
        raise ValueError(f"verifier {name} is a function, and nothing here names its file")
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
    for an unknown verifier and SetupError where its package is missing.
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
    """Start `verify`; the future raises what `verify` would."""
    return submit_group(prompt, [(text, truncated)])[0]


def submit_group(prompt: Prompt, answers: Sequence[tuple[str, bool]]) -> list[Future[Outcome]]:
    """Start `verify` of answers to one prompt, each a text and whether it was truncated.

    A verifier that decides a round of the engine in one batch waits for `settle`.
    """
    verifier = find_verifier(prompt.verifier)
    futures: list[Future[Outcome]] = []
    batch: list[_Waiting] = []
    for text, truncated in answers:
        unseen = _outcome_unseen(text, truncated=truncated)
        if verifier.verify_batch is None or unseen is not None:
            futures.append(_threads().submit(verify, prompt, text, truncated=truncated))
            continue
        futures.append(Future())
        batch.append((prompt, text, futures[-1]))
    if verifier.batch == "round":
        _waiting.extend(batch)
    elif batch:
        _threads().submit(_decide, verifier, batch)
    return futures


def settle() -> None:
    """Decide every answer that waits, in one batch per verifier."""
    waiting = _waiting.copy()
    _waiting.clear()
    for name in dict.fromkeys(prompt.verifier for prompt, _, _ in waiting):
        _decide(find_verifier(name), [one for one in waiting if one[0].verifier == name])


def _decide(verifier: Verifier, batch: Sequence[_Waiting]) -> None:
    """Fill the futures of a batch."""
    assert verifier.verify_batch is not None
    started = time.perf_counter()
    try:
        found = verifier.verify_batch([(prompt, text) for prompt, text, _ in batch])
    except Exception as error:
        for _, _, future in batch:
            future.set_exception(error)
        return
    seconds = (time.perf_counter() - started) / len(batch)
    for (prompt, text, future), outcome in zip(batch, found, strict=True):
        flags = reward_hack_flags(verifier, prompt, text)
        future.set_result(dataclasses.replace(outcome, seconds=seconds, reward_hack_flags=flags))


def _outcome_unseen(text: str, *, truncated: bool) -> Outcome | None:
    """Return the outcome of an answer that no verifier needs to see; None for every other."""
    if truncated:
        return decided(False, "truncated", "truncated")
    if not text.strip():
        return decided(False, "empty", "empty")
    return None


@lru_cache
def _loaded(name: str) -> Verifier:
    return make_verifier(_functions[name])


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    # Threads wait for processes, some of them for one that hangs.
    return ThreadPoolExecutor(NUM_FAST + NUM_SLOW, thread_name_prefix="verify")
