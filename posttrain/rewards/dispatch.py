"""The table of verifiers, and the one way to them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from posttrain.records import Outcome, Prompt
from posttrain.rewards.choice import fits_choice, verify_choice
from posttrain.rewards.code import fits_code, verify_code
from posttrain.rewards.exact import fits_exact, verify_exact
from posttrain.rewards.instructions import fits_instructions, verify_instructions
from posttrain.rewards.judged import fits_judged, verify_judged
from posttrain.rewards.math import fits_math, verify_math
from posttrain.rewards.reasoning_gym import fits_reasoning_gym, verify_reasoning_gym
from posttrain.rewards.watch import touches


@dataclass(frozen=True, kw_only=True, slots=True)
class Verifier:
    """How one kind of answer is decided."""

    verify: Callable[[Prompt, str], Outcome]
    """Decides a text that is neither empty nor truncated."""
    fits: Callable[[Prompt], str | None]
    """Why a prompt cannot be decided by this verifier; None where it can."""
    is_open: bool = False
    """Whether an answer is a text of its own rather than one of a few: no constant answer is looked
    for, which would have to be tried on every prompt."""


VERIFIERS: Mapping[str, Verifier] = {
    "exact": Verifier(verify=verify_exact, fits=fits_exact),
    "math": Verifier(verify=verify_math, fits=fits_math),
    "choice": Verifier(verify=verify_choice, fits=fits_choice),
    "code": Verifier(verify=verify_code, fits=fits_code, is_open=True),
    "instructions": Verifier(verify=verify_instructions, fits=fits_instructions),
    "reasoning_gym": Verifier(verify=verify_reasoning_gym, fits=fits_reasoning_gym),
    "judge": Verifier(verify=verify_judged, fits=fits_judged, is_open=True),
}


def verify(prompt: Prompt, text: str, *, truncated: bool = False) -> Outcome:
    """Decide one completion; a truncated or empty one fails, whatever it holds.

    A verifier's own failure is an outcome with passed None, never an exception. Raises ValueError
    for an unknown verifier and EnvironmentFault where its package is missing.
    """
    verifier = VERIFIERS.get(prompt.verifier)
    if verifier is None:
        raise ValueError(_unknown(prompt.verifier))
    if foregone := foregone_outcome(text, truncated=truncated):
        return foregone
    started = time.perf_counter()
    outcome = verifier.verify(prompt, text)
    return dataclasses.replace(
        outcome, seconds=time.perf_counter() - started, touches=touches(prompt, text)
    )


def foregone_outcome(text: str, *, truncated: bool) -> Outcome | None:
    """The outcome of an answer that no verifier needs to see; None for every other."""
    if truncated:
        return Outcome(passed=False, score=0.0, why="truncated")
    if not text.strip():
        return Outcome(passed=False, score=0.0, why="empty")
    return None


def check_fits(prompt: Prompt) -> str | None:
    """Why this prompt's reference does not fit its verifier; None where it does."""
    verifier = VERIFIERS.get(prompt.verifier)
    return verifier.fits(prompt) if verifier else _unknown(prompt.verifier)


def _unknown(name: str) -> str:
    return f"no verifier is named {name!r}; there are {', '.join(VERIFIERS)}"
