"""Conversations from raw rows: which columns hold what, and whether the turns are sound."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from posttrain.data.quarantine import BadRow
from posttrain.errors import RecipeError
from posttrain.records import Message
from posttrain.rewards import Verifier
from posttrain.rewards.python_source import OURS

_QUESTIONS = ("messages", "question", "prompt")
_ANSWERS = ("answer", "completion")
_ROLES = ("system", "user", "assistant")
# What others call these columns, for the mapping that an error proposes.
_ALSO_CALLED = {
    "messages": ("conversation", "conversations", "chat", "dialog"),
    "question": ("problem", "instruction", "input", "query", "text"),
    "answer": ("solution", "output", "response", "target", "final_answer", "label", "reference"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Columns that hold the question and the answer."""

    question: str
    answer: str | None
    """Column of the answer; None if it is the last assistant turn of `question`."""
    needs_answer: bool = True
    """True if a row without an answer is bad."""
    reference: str | tuple[str, ...] | None = None
    """Column of the verifier's reference, or columns whose values make one object."""
    needs_reference: bool = True
    """True if a row without that reference is bad."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """A question with its answer."""

    turns: list[Message]
    """Turns of the question, the last one the user's."""
    answer: str
    """Answer; empty if there is none and none is needed."""
    reference: str | None = None
    """Reference of the verifier; None if it is the answer."""


def find_layout(
    mapping: Mapping[Any, str],
    present: Sequence[str] | None,
    where: str,
    file: str,
    *,
    verifier: Verifier | None = None,
    prompts: bool = False,
) -> Layout:
    """Choose the columns to read, from the recipe's mapping and the columns that are present.

    A verifier whose reference is not the answer takes the column `reference`; RL prompts then need
    no answer. Raises RecipeError with the present columns and the mapping to write.
    """
    source = None if verifier is None else verifier.reference_from
    if present is None:
        own = "reference" if source in ("column", "optional") else None
        return Layout(
            question=mapping.get("messages", "messages"),
            answer=None,
            needs_answer=not prompts,
            reference=mapping.get("reference") or own,
            needs_reference=source != "optional",
        )
    listed = ", ".join(present)
    for field, column in mapping.items():
        if column not in present:
            near = _meant(field, column, [c for c in present if c not in mapping.values()])
            raise RecipeError(
                f"{where}: {file} has no column {column!r}, it has: {listed}",
                hint=f"under {where} write columns: {{{field}: {near}}}",
            )
    mapped = {field: mapping.get(field) for field in (*_QUESTIONS, *_ANSWERS)}
    found = {field: mapped[field] or (field if field in present else None) for field in mapped}
    question = next((f for f in _QUESTIONS if mapped[f]), None)
    question = question or next((f for f in _QUESTIONS if found[f]), None)
    answer = next((f for f in _ANSWERS if mapped[f]), None)
    answer = answer or next((f for f in _ANSWERS if found[f]), None)
    reference = _find_reference(mapping, present, where, file, verifier)
    if source == "optional" and reference is None and answer is not None:
        reference = found[answer]
    needs_answer = not (prompts and (reference is not None or source in ("nothing", "optional")))
    if question is None or (question != "messages" and answer is None and needs_answer):
        lacking = "messages, question or prompt" if question is None else "answer or completion"
        raise RecipeError(
            f"{where}: {file} has no column {lacking}, it has: {listed}",
            hint=f"under {where} write columns: {{{_proposal(present, question, found)}}}",
        )
    question_column = found[question]
    assert question_column is not None
    return Layout(
        question=question_column,
        answer=found[answer] if answer else None,
        needs_answer=needs_answer,
        reference=reference,
        needs_reference=source != "optional",
    )


def _meant(field: str, column: str, free: Sequence[str]) -> str:
    """Guess the column that a mapping to a missing column meant."""
    if field in free:
        return field
    near = difflib.get_close_matches(column, free, n=1, cutoff=0.6)
    near += [c for c in free if c.lower() in _ALSO_CALLED.get(field, ())]
    return near[0] if near else "<your column>"


def _find_reference(
    mapping: Mapping[Any, str],
    present: Sequence[str],
    where: str,
    file: str,
    verifier: Verifier | None,
) -> str | tuple[str, ...] | None:
    """Return the column, or the columns, of what the verifier compares with."""
    if "reference" in mapping:
        return mapping["reference"]
    if verifier is None or verifier.reference_from in ("answer", "nothing"):
        return None
    if "reference" in present:
        return "reference"
    if verifier.joint_columns and all(column in present for column in verifier.joint_columns):
        return verifier.joint_columns
    if verifier.reference_from in ("answer or column", "optional"):
        return None
    known = verifier.reference_columns
    near = next((column for column in present if column.lower() in known), "<your column>")
    listed = ", ".join(present)
    raise RecipeError(
        f"{where}: verifier {verifier.name} needs a column reference, {file} has: {listed}",
        hint=f"under {where} write columns: {{reference: {near}}}",
    )


def _proposal(present: Sequence[str], question: str | None, found: Mapping[str, str | None]) -> str:
    """Return the likeliest mapping, as written in a recipe."""
    chat = next((c for c in present if c.lower() in _ALSO_CALLED["messages"]), None)
    if question is None and chat:
        return f"messages: {chat}"
    parts = [] if question is None else [f"{question}: {found[question]}"]
    used = {found[question]} if question is not None else set[str | None]()
    for field in ("question", "answer") if question is None else ("answer",):
        free = [column for column in present if column not in used]
        named = [c for c in free if c.lower() in _ALSO_CALLED[field]]
        near = named or difflib.get_close_matches(field, free, n=1, cutoff=0.5) or free
        guess = near[0] if near else "<your column>"
        used.add(guess)
        parts.append(f"{field}: {guess}")
    return ", ".join(parts)


def to_conversation(row: Mapping[str, Any], layout: Layout) -> Conversation:
    """Return the row's turns and answer; BadRow if they are not a sound conversation."""
    if layout.question not in row:
        raise BadRow("missing_column", f"no {layout.question!r} in this row")
    asked = row[layout.question]
    if isinstance(asked, list):
        turns = [_turn(turn, position) for position, turn in enumerate(cast("list[Any]", asked))]
    else:
        turns = [Message(role="user", content=_text(asked, layout.question))]
    if not turns:
        raise BadRow("missing_turn", f"{layout.question!r} holds no turns")
    if turns[-1]["role"] == "assistant":
        answer = turns.pop()["content"]
    elif not layout.needs_answer:
        answer = ""
    elif layout.answer is None:
        raise BadRow("missing_turn", "the last turn is not the assistant's")
    elif layout.answer not in row:
        raise BadRow("missing_column", f"no {layout.answer!r} in this row")
    else:
        answer = _answer(row[layout.answer], layout.answer)
    _check_order(turns)
    return Conversation(turns=turns, answer=answer, reference=_reference(row, layout))


def further_columns(row: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    """Return the columns of a row that a user's function reads by name; None = all.

    BadRow if a named one is no JSON value; of all columns such a one is left out.
    """
    columns: dict[str, Any] = {}
    for name in row if names is None else names:
        if name not in row or name in OURS:
            continue
        try:
            json.dumps(row[name], allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            if names is not None:
                raise BadRow("not_json", f"{name!r} is no JSON value: {error}") from error
        else:
            columns[name] = row[name]
    return columns


def _reference(row: Mapping[str, Any], layout: Layout) -> str | None:
    """Return a row's reference: text as it is, any other value as canonical JSON."""
    columns = layout.reference
    if columns is None:
        return None
    names = (columns,) if isinstance(columns, str) else columns
    if not layout.needs_reference and all(row.get(name) in (None, "") for name in names):
        return ""
    for name in names:
        if row.get(name) is None:
            raise BadRow("no_reference", f"no {name!r} in this row")
    value = row[columns] if isinstance(columns, str) else {name: row[name] for name in columns}
    shown = " and ".join(names)
    if isinstance(value, str):
        return _text(value, shown)
    try:
        return _text(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False), shown)
    except ValueError as error:
        raise BadRow("not_finite", f"{shown!r}: {error}") from error
    except (TypeError, RecursionError) as error:
        raise BadRow("not_json", f"{shown!r} is no JSON value: {error}") from error


def _turn(value: Any, position: int) -> Message:
    turn = cast("dict[Any, Any]", value) if isinstance(value, dict) else {}
    role, content = turn.get("role"), turn.get("content")
    if "role" not in turn or "content" not in turn:
        raise BadRow("missing_turn", f"turn {position} has no role and content")
    if role not in _ROLES:
        raise BadRow("role_order", f"turn {position}: role {role!r:.40} is none of {_ROLES}")
    return Message(role=role, content=_text(content, f"turn {position}"))


def _answer(value: Any, name: str) -> str:
    """Return the answer's text, from a string, a number, or a list with one assistant turn."""
    if isinstance(value, list):
        turns = [_turn(turn, position) for position, turn in enumerate(cast("list[Any]", value))]
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            raise BadRow("role_order", f"{name!r} must hold one assistant turn")
        return turns[0]["content"]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
        if value in ("nan", "inf", "-inf"):
            raise BadRow("not_finite", f"{name!r} is {value}")
    return _text(value, name)


def _text(value: Any, name: str) -> str:
    """Return a text that can be trained on; BadRow for anything else."""
    if value is None:
        raise BadRow("empty_turn", f"{name!r} is null")
    if not isinstance(value, str):
        raise BadRow("not_text", f"{name!r} is a {type(value).__name__}")
    if not value.strip():
        raise BadRow("empty_turn", f"{name!r} is empty")
    if "\0" in value:
        raise BadRow("nul", f"{name!r} holds a NUL character")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise BadRow("lone_surrogate", f"{name!r} holds half a surrogate pair")
    return value


def _check_order(turns: Sequence[Message]) -> None:
    """Check for at most one system turn, first, then user and assistant in turn, user last."""
    roles = [turn["role"] for turn in turns]
    if roles and roles[0] == "system":
        roles = roles[1:]
    expected = ["assistant" if i % 2 else "user" for i in range(len(roles))]
    if not roles:
        raise BadRow("missing_turn", "there is no user turn")
    if roles != expected or roles[-1] != "user":
        raise BadRow("role_order", f"roles {', '.join(roles)} do not alternate from user to user")


def framed(turns: Sequence[Message], *, system: str | None, suffix: str) -> list[Message]:
    """Return the turns with the source's system text first, its suffix after the last question.

    A system turn of the row's own is appended to the source's.
    """
    framed_turns = [Message(role=turn["role"], content=turn["content"]) for turn in turns]
    if suffix:
        framed_turns[-1]["content"] += suffix
    if system:
        if framed_turns[0]["role"] == "system":
            system += "\n\n" + framed_turns.pop(0)["content"]
        framed_turns.insert(0, Message(role="system", content=system))
    return framed_turns
