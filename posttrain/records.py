"""Records that the stages exchange: samples, verdicts, prompts, rollouts, preference pairs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict


class Message(TypedDict):
    """One chat turn."""

    role: str
    content: str


FinishReason = Literal["stop", "length"]


def content_hash(*parts: Any) -> str:
    """Return the first 16 hex digits of the sha256 of the parts' canonical JSON.

    >>> content_hash([{"role": "user", "content": "2+2"}], "4")
    'bc170831a43a7591'
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def question_hash(messages: Sequence[Message]) -> str:
    """Hash the question: all turns but the system's and a final answer, whitespace normalised.

    A training sample and a held-out prompt with the same question have the same hash.

    >>> system, user = {"role": "system", "content": "x"}, {"role": "user", "content": "2 + 2 =\\n"}
    >>> ask, answered = [system, user], [user, {"role": "assistant", "content": "4"}]
    >>> question_hash(ask) == question_hash(answered)
    True
    """
    turns = [m for m in messages if m["role"] != "system"]
    if turns and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    return content_hash([[m["role"], " ".join(m["content"].split())] for m in turns])


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """Replace a conversation's system instruction; None leaves it unchanged.

    >>> turns = [{"role": "system", "content": "old"}, {"role": "user", "content": "2+2"}]
    >>> with_system(turns, "new")[0]["content"], len(with_system(turns[1:], "new"))
    ('new', 2)
    """
    if system is None:
        return list(messages)
    turns = [message for message in messages if message["role"] != "system"]
    return [Message(role="system", content=system), *turns]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One SFT example: a conversation that ends with the assistant's reference answer.

    >>> turns = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]
    >>> Sample.make(messages=turns, capability="math").sample_id
    'f9ed385bf4d01076'
    """

    sample_id: str
    """Hash of messages and capability."""
    messages: list[Message]
    """Conversation whose last turn is the assistant's."""
    capability: str
    verifier: str | None = None
    """Name of the verifier that can decide an answer to this question; None if none can."""
    reference: str | None = None
    """Reference that the verifier compares an answer with."""
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Family, level, source file and line; JSON values only."""

    @classmethod
    def make(
        cls,
        *,
        messages: list[Message],
        capability: str,
        verifier: str | None = None,
        reference: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Sample:
        """Build a sample with the id that its content gives it."""
        return cls(
            sample_id=content_hash(messages, capability),
            messages=messages,
            capability=capability,
            verifier=verifier,
            reference=reference,
            meta=dict(meta or {}),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A judge's opinion of how hard one sample is.

    >>> Verdict(sample_id="f9ed385bf4d01076", score=0.25, reason="0.3 nats", judge="ab12").score
    0.25
    """

    sample_id: str
    score: float | None
    """Difficulty in [0, 1], higher is harder; None = unscored, never a default."""
    reason: str
    judge: str
    """Hash of the judge YAML and the judging model's revision."""
    distribution: Mapping[str, float] = field(default_factory=dict[str, float])
    """Probability per label of the scale, or the parts of the score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One RL or evaluation task: a question, its reference and the verifier that decides.

    >>> Prompt.make(messages=[{"role": "user", "content": "2+2"}], reference="4", verifier="exact",
    ...             capability="math").capability
    'math'
    """

    prompt_id: str
    """Hash of messages, reference and verifier."""
    messages: list[Message]
    reference: str
    verifier: str
    capability: str
    level: str | None = None
    origin: str = "dataset"
    """`dataset`, or the prompt_id it was generated from."""
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further inputs of the verifier; JSON values only."""

    @classmethod
    def make(
        cls,
        *,
        messages: list[Message],
        reference: str,
        verifier: str,
        capability: str,
        level: str | None = None,
        origin: str = "dataset",
        meta: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """Build a prompt with the id that its content gives it."""
        columns = [meta["columns"]] if meta and meta.get("columns") else []
        return cls(
            prompt_id=content_hash(messages, reference, verifier, *columns),
            messages=messages,
            reference=reference,
            verifier=verifier,
            capability=capability,
            level=level,
            origin=origin,
            meta=dict(meta or {}),
        )


OutcomeKind = Literal[
    "passed",
    # Failed: what the answer says.
    "wrong", "no_answer", "several_answers", "too_few_answers", "too_long", "constraint_not_met",
    "below_threshold", "opener_only", "truncated", "empty",
    # Failed: how the answer's program ended. A verifier itself can run out of time and memory, too.
    "does_not_load", "raised", "ended_early", "killed", "timeout", "out_of_memory",
    "too_much_output", "too_many_files", "malformed_output",
    # Undecided.
    "bad_reference", "no_opinion", "verifier_crashed", "verifier_failed", "sandbox_failed",
]  # fmt: skip
"""Reason of an outcome, in a form that can be counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The result of verifying one completion.

    >>> Outcome(passed=None, score=0.0, why="timeout after 3 s", kind="timeout").passed is None
    True
    """

    passed: bool | None
    """None = could not be decided: missing, not failed."""
    score: float
    """Score in [0, 1]; meaningless where passed is None."""
    why: str
    """The reason in words, for one answer."""
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """Named measurements behind the score."""
    seconds: float = 0.0
    """Time that verification took."""
    extracted: str = ""
    """Answer that was read, and where it was found; empty where the whole text counts."""
    reward_hack_flags: tuple[str, ...] = ()
    """Names of the verifier's reward-hack patterns found in the text; they decide nothing."""
    kind: OutcomeKind | None = None
    """None = not recorded, in tables from before there were kinds."""

    @property
    def label(self) -> str:
        """Return the kind in words.

        >>> Outcome(passed=None, score=0.0, why="", kind="out_of_memory").label
        'undecided: out of memory'
        """
        if self.passed:
            return "passed"
        kind = "not recorded" if self.kind is None else self.kind.replace("_", " ")
        return f"undecided: {kind}" if self.passed is None else kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One completion of a prompt with its outcome.

    >>> Rollout(completion_ids=[19, 2], logprobs=[-0.1, -0.01], text="4", finish_reason="stop",
    ...         outcome=Outcome(passed=True, score=1.0, why="equal")).outcome.passed
    True
    """

    completion_ids: list[int]
    """(T,) tokens, with the end token if there is one."""
    logprobs: list[float]
    """(T,) natural-log probabilities under the policy that sampled them."""
    text: str
    finish_reason: FinishReason
    outcome: Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutGroup:
    """The k rollouts of one prompt at one step.

    >>> win = Rollout(completion_ids=[19], logprobs=[-0.1], text="4", finish_reason="stop",
    ...               outcome=Outcome(passed=True, score=1.0, why="equal"))
    >>> group = RolloutGroup(prompt_id="p1", step=3, policy_version=3, rollouts=(win,))
    >>> group.num_passed, group.num_decided, group.has_signal
    (1, 1, False)
    """

    prompt_id: str
    step: int
    """Optimizer step (TRL's global_step) the group was generated for."""
    policy_version: int
    rollouts: tuple[Rollout, ...]
    system: str | None = None
    """System instruction sampled for the group; None = the prompt's own."""

    @property
    def num_passed(self) -> int:
        """Count the rollouts that passed."""
        return sum(r.outcome.passed is True for r in self.rollouts)

    @property
    def num_decided(self) -> int:
        """Count the rollouts that the verifier could decide."""
        return sum(r.outcome.passed is not None for r in self.rollouts)

    @property
    def has_signal(self) -> bool:
        """Return True if some passed and some failed, by binary outcomes, not shaped rewards."""
        return 0 < self.num_passed < self.num_decided


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferencePair:
    """A chosen and a rejected completion of one prompt.

    >>> PreferencePair(
    ...     prompt_id="p1",
    ...     prompt=[{"role": "user", "content": "2+2"}],
    ...     chosen="4",
    ...     rejected="5",
    ...     corner_case="wrong_answer",
    ...     origin={"chosen_step": 3, "rejected_step": 4},
    ... ).rejected
    '5'
    """

    prompt_id: str
    prompt: list[Message]
    chosen: str
    rejected: str
    corner_case: str
    """Defect of the rejected completion: wrong_answer, truncation, format, ..."""
    origin: Mapping[str, Any]
    """Steps, policy versions and indices of the two rollouts."""
