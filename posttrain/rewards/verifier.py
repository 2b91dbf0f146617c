"""Declare a verifier: name, reference, function, and what else depends on which verifier it is."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from posttrain.errors import SetupError
from posttrain.records import Outcome, OutcomeKind, Prompt

SEVERAL_ANSWERS: Mapping[str, re.Pattern[str]] = {
    "several answers": re.compile(
        r"(?:\\boxed\s*\{.*){2,}|(?:<answer>.*){2,}|(?:^\W*####.*){2,}"
        r"|\banswer\b[^.\n]*\bis\b[^.\n]*\bor\b",
        re.IGNORECASE | re.DOTALL | re.MULTILINE,
    ),
}
"""Reward hacks of verifiers that compare a stated answer with a reference."""
_MAX_CHARS = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """Modules that a verifier imports, and how to install them."""

    modules: tuple[str, ...]
    install: str
    """Argument of `pip install`."""

    @property
    def missing(self) -> list[str]:
        """Return the modules that are not installed."""
        return [name for name in self.modules if importlib.util.find_spec(name) is None]

    def require(self, verifier: str) -> None:
        """Raise SetupError where a module is missing."""
        if missing := self.missing:
            raise SetupError(
                f"the {verifier} verifier needs {', '.join(missing)}",
                hint=f"pip install {shlex.quote(self.install)}",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Verifier:
    """One way to decide whether a completion answers its prompt."""

    name: str
    """Value of `verifier` in a recipe."""
    summary: str
    """Decision in a few words, for the table in docs/verifiers.md."""
    takes: str
    """Form of its reference, for the same table."""
    verify: Callable[[Prompt, str], Outcome]
    """Function that decides a text, which is neither empty nor truncated."""
    check: Callable[[Prompt], str | None]
    """Function that says why a prompt's reference cannot be used; None where it can."""
    verify_batch: Callable[[Sequence[tuple[Prompt, str]]], list[Outcome]] | None = None
    """`verify` of many answers at once; None where each is verified by itself."""
    batch: Literal["prompt", "round"] = "round"
    """Answers of a batch: those of one prompt, or all of a round of the engine, for `settle`."""

    reference_from: Literal["answer", "column", "answer or column", "optional", "nothing"] = (
        "answer"
    )
    """Place of the reference in a data row: in its answer; in the column `reference`; in that
    column where there is one, else in its answer, which may (optional) lack, too; or nowhere."""
    columns: tuple[str, ...] | None = ()
    """Further columns of the row that it reads, in `meta["columns"]`; None = all."""
    read_reference: Callable[[str], str] = str
    """Function that makes the reference of that text."""
    reference_columns: tuple[str, ...] = ()
    """Names of the column in public data sets, for the mapping that an error proposes."""
    joint_columns: tuple[str, ...] = ()
    """Columns that make up the reference, as one JSON object, where no column holds it alone."""
    own_data_only: bool = False
    """True if it decides only questions that it made, so that no file can name it."""

    is_scorable: bool = False
    """True if the reference is an answer that the policy could write and pass: its likelihood then
    tells how hard the prompt is."""
    is_open: bool = False
    """True if answers are free text: no constant answer is worth a comparison."""
    reward_hacks: Mapping[str, re.Pattern[str]] = field(default_factory=lambda: SEVERAL_ANSWERS)
    """Patterns of answers that try to win without solving the task."""
    package: Package | None = None
    """Optional dependency."""
    uses: Literal["sandbox", "answer_judge"] | None = None
    """Recipe section that configures what it runs on."""


def reward_hack_flags(verifier: Verifier, prompt: Prompt, text: str) -> tuple[str, ...]:
    """Return the names of the verifier's patterns that the text matches and the question does not.

    A policy that is trained on a verifier finds its holes, and each pattern is one that a policy
    found or that an answer has no honest use for. Honest answers match now and then, so flags
    decide nothing: a share that rises is worth a look.
    """
    asked = "\n".join(turn["content"] for turn in prompt.messages)
    return tuple(
        name
        for name, pattern in verifier.reward_hacks.items()
        if pattern.search(text[:_MAX_CHARS]) and not pattern.search(asked[:_MAX_CHARS])
    )


def undecided(kind: OutcomeKind, why: str, *, extracted: str = "") -> Outcome:
    """Return the outcome of an answer that could not be verified."""
    return Outcome(passed=None, score=0.0, why=why, kind=kind, extracted=extracted)


def decided(
    passed: bool,
    kind: OutcomeKind,
    why: str,
    *,
    extracted: str = "",
    parts: Mapping[str, float] | None = None,
) -> Outcome:
    """Return the outcome of a verified answer, its score 1 or 0; `kind` counts where it failed."""
    return Outcome(
        passed=passed,
        score=float(passed),
        why=why,
        kind="passed" if passed else kind,
        extracted=extracted,
        parts=parts or {},
    )
