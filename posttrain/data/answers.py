"""Tables of answers to verify: a user's own rows, or a run's rollouts with their prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from posttrain.data.turns import further_columns
from posttrain.errors import RecipeError
from posttrain.records import Message, Prompt
from posttrain.rewards.python import COLUMNS
from posttrain.tables import DamagedFile, read_records, read_table

HINT = (
    'write rows like {"verifier": "math", "reference": "4", "answer": "\\\\boxed{4}"}; question, '
    "meta and finish_reason may stand beside them"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer and the task that it answers."""

    prompt: Prompt
    text: str
    truncated: bool = False
    before: bool | None = None
    """Outcome in the run's table, if the answer is from one."""


def read_answers(
    path: Path, *, verifier: str | None = None, reference: str | None = None
) -> list[Answer]:
    """Read the answers of a JSONL or Parquet file, in order.

    Rows hold `answer` (or `text`, `completion`) and what the task needs; `verifier` and `reference`
    are the defaults of rows without one. Rollouts of a run (rollouts/step-*.parquet,
    outcomes-*.parquet, pilot.parquet) find their prompts in its data stage. Raises RecipeError that
    names the row.
    """
    try:
        rows = read_table(path)
    except DamagedFile as error:
        raise RecipeError(str(error), hint=HINT) from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: {error}", hint="give a .jsonl or .parquet file") from error
    if not rows:
        raise RecipeError(f"{path} holds no rows", hint=HINT)
    if "prompt_id" in rows[0] and "reference" not in rows[0]:
        return _rollouts(path, rows)
    return [_answer(path, n, row, verifier, reference) for n, row in enumerate(rows, 1)]


def _rollouts(path: Path, rows: list[dict[str, Any]]) -> list[Answer]:
    prompts = _prompts_of_run(path)
    if missing := sorted({row["prompt_id"] for row in rows} - set(prompts)):
        raise RecipeError(
            f"{path}: the prompt {missing[0]} ({len(missing)} in all) is in no table of its run",
            hint="give a table that lies in its run directory, the data stage finished",
        )
    return [
        Answer(
            prompt=prompts[row["prompt_id"]],
            text=row["text"],
            truncated=row["finish_reason"] == "length",
            before=row["passed"],
        )
        for row in rows
    ]


def _prompts_of_run(path: Path) -> dict[str, Prompt]:
    """Read every prompt of the run directory that contains a file."""
    for folder in path.resolve().parents:
        if (folder / "stages").is_dir():
            tables = [
                *folder.glob("stages/*-data/prompts.parquet"),
                *folder.glob("stages/*-data/suites/*.parquet"),
                *folder.glob("stages/*-rl/prompts/*.parquet"),
            ]
            return {p.prompt_id: p for table in tables for p in read_records(table, Prompt)}
    return {}


def _answer(
    path: Path, number: int, row: Mapping[str, Any], verifier: str | None, reference: str | None
) -> Answer:
    def text_of(*names: str) -> str | None:
        for name in names:
            value = row.get(name)
            if isinstance(value, dict | list):
                return json.dumps(value, sort_keys=True)
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                return str(value)
        return None

    asked, truth = text_of("verifier") or verifier, text_of("reference")
    given = text_of("answer", "text", "completion")
    if asked is None or given is None:
        lacking = "verifier" if asked is None else "answer"
        raise RecipeError(f"{path}, row {number}: there is no {lacking}", hint=HINT)
    meta = row.get("meta") or {}
    if not isinstance(meta, dict):
        raise RecipeError(f"{path}, row {number}: meta is no JSON object", hint=HINT)
    if ":" in asked:
        # A function of the user's own reads the row's columns by name.
        meta = {COLUMNS: further_columns(row, None), **cast("dict[str, Any]", meta)}
    return Answer(
        prompt=task(
            asked,
            reference=truth if truth is not None else reference or "",
            question=text_of("question", "prompt") or "",
            meta=cast("dict[str, Any]", meta),
        ),
        text=given,
        truncated=row.get("finish_reason") == "length",
    )


def task(verifier: str, *, reference: str, question: str, meta: Mapping[str, Any]) -> Prompt:
    """Make a prompt to verify answers to, outside any recipe."""
    return Prompt.make(
        messages=[Message(role="user", content=question)],
        reference=reference,
        verifier=verifier,
        capability=verifier,
        meta=meta,
    )
