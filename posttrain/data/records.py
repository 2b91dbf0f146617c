"""Samples and prompts, made of conversations and generated questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.data.quarantine import BadRow
from posttrain.data.turns import Conversation, framed
from posttrain.recipe.rows import DataSource
from posttrain.records import Message, Prompt, Sample, question_hash
from posttrain.rewards import check_reference, find_verifier

BARE_QUESTION = "bare_question"
"""Key in meta: hash of the question without the source's suffix, so that overlaps are found."""


def question_hashes(record: Sample | Prompt) -> frozenset[str]:
    """Return every hash under which a record's question counts as known."""
    own = question_hash(record.messages)
    return frozenset({own, record.meta.get(BARE_QUESTION, own)})


def prompt_of(sample: Sample) -> Prompt | None:
    """Return the task that a sample's question poses; None if it has no verifier."""
    if sample.verifier is None:
        return None
    return Prompt.make(
        messages=sample.messages[:-1],
        reference=sample.reference or "",
        verifier=sample.verifier,
        capability=sample.capability,
        level=sample.meta.get("level"),
        meta=sample.meta,
    )


def make_sample(
    conversation: Conversation, source: DataSource, capability: str, meta: Mapping[str, Any]
) -> Sample:
    """Make the SFT sample of a conversation; BadRow if its verifier cannot use the answer."""
    asked, meta = _asked(conversation, source, meta)
    verifier = _verifier(source, meta)
    sample = Sample.make(
        messages=[*asked, Message(role="assistant", content=conversation.answer)],
        capability=capability,
        verifier=verifier,
        reference=None if verifier is None else _reference(conversation, verifier),
        meta=meta,
    )
    prompt = prompt_of(sample)
    if prompt is not None:
        _check_reference(prompt)
    return sample


def make_prompt(
    conversation: Conversation, source: DataSource, capability: str, meta: Mapping[str, Any]
) -> Prompt:
    """Make the prompt of a conversation; BadRow if its verifier cannot use the reference."""
    asked, meta = _asked(conversation, source, meta)
    verifier = _verifier(source, meta)
    assert verifier is not None, "checked when the source was opened"
    prompt = Prompt.make(
        messages=asked,
        reference=_reference(conversation, verifier),
        verifier=verifier,
        capability=capability,
        level=meta.get("level"),
        meta=meta,
    )
    _check_reference(prompt)
    return prompt


def _asked(
    conversation: Conversation, source: DataSource, meta: Mapping[str, Any]
) -> tuple[list[Message], dict[str, Any]]:
    asked = framed(conversation.turns, system=source.system, suffix=source.suffix)
    bare = {BARE_QUESTION: question_hash(conversation.turns)} if source.suffix else {}
    return asked, {**meta, **bare}


def _verifier(source: DataSource, meta: Mapping[str, Any]) -> str | None:
    if source.generated is not None:
        return source.generated.named[meta["generator"]].verifier
    return source.verifiers[0] if source.verifiers else None


def _reference(conversation: Conversation, verifier: str) -> str:
    """Return what the verifier compares with: the result of a worked answer (`#### 72`)."""
    given = conversation.answer if conversation.reference is None else conversation.reference
    return find_verifier(verifier).read_reference(given)


def _check_reference(prompt: Prompt) -> None:
    if why := check_reference(prompt):
        raise BadRow("verifier_fit", f"verifier {prompt.verifier}: {why}")
