"""Recipes, files and rows that the tests of posttrain.data share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain import data
from posttrain.recipe.schema import Recipe
from posttrain.records import question_hash

QA = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(40)]


def recipe(
    sft: list[dict[str, Any]] | None = None,
    rl: list[dict[str, Any]] | None = None,
    heldout: int | None = None,
    suites: list[dict[str, Any]] | None = None,
    max_bad_rows: float = 0.01,
) -> Recipe:
    built_in = ["heldout"] if heldout else []
    return Recipe.model_validate(
        {
            "model": {"base": "m"},
            **({"sft": {"data": sft}} if sft else {}),
            **({"rl": {"data": rl}} if rl else {}),
            "eval": {"suites": [*built_in, *(suites or [])], "heldout_size": heldout or 1},
            "max_bad_rows": max_bad_rows,
        }
    )


def source(path: str = "d.jsonl", **rest: Any) -> dict[str, Any]:
    return {"path": path, "capability": "math", **rest}


def jsonl(folder: Path, rows: list[Any], name: str = "d.jsonl") -> None:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (folder / name).write_bytes(b"".join(line + b"\n" for line in lines))


def load(what: Recipe, folder: Path, *, seed: int = 0, **rest: Any) -> data.DataBundle:
    def find(name: str) -> Path:
        if not (folder / name).exists():
            raise FileNotFoundError(0, f"no such file in {folder}", name)
        return folder / name

    bundle = data.load_data(what, find=find, seed=seed, **rest)
    data.assert_disjoint(bundle)
    return bundle


def chat(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    turns = [{"role": "system", "content": system}] if system else []
    return turns + [
        {"role": "assistant" if i % 2 else "user", "content": c} for i, c in enumerate(contents)
    ]


BAD_ROWS: list[tuple[str, bytes | dict[str, Any]]] = [
    ("broken_json", b'{"messages": '),
    ("broken_json", b"nonsense"),
    ("not_object", b"[1, 2]"),
    ("not_object", b'"text"'),
    ("not_finite", b'{"messages": [], "x": NaN}'),
    ("not_finite", b'{"messages": [], "x": -Infinity}'),
    ("not_finite", b'{"messages": [], "x": 1e999}'),
    ("not_utf8", b'{"messages": "\xff"}'),
    ("too_deep", b'{"x": ' + b"[" * 80 + b"]" * 80 + b"}"),
    ("too_deep", b'{"x": ' + b"[" * 99999 + b"]" * 99999 + b"}"),
    ("missing_column", {"other": 1}),
    ("missing_turn", {"messages": []}),
    ("missing_turn", {"messages": chat("a")}),
    ("missing_turn", {"messages": ["hi", "hello"]}),
    ("missing_turn", {"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}),
    ("missing_turn", {"messages": [{"role": "assistant", "content": "b"}]}),
    ("missing_turn", {"messages": [*chat(system="S"), {"role": "assistant", "content": "b"}]}),
    ("role_order", {"messages": [*chat("a"), *chat("b", "c")]}),
    ("role_order", {"messages": [{"role": "human", "content": "a"}, *chat("a", "b")[1:]]}),
    ("role_order", {"messages": [{"role": 3, "content": "a"}, *chat("a", "b")[1:]]}),
    ("role_order", {"messages": [*chat("a"), *chat(system="s"), *chat("a", "b")[1:]]}),
    ("not_text", {"messages": [{"role": "user", "content": 3}, *chat("a", "b")[1:]]}),
    ("not_text", {"messages": [{"role": "user", "content": [{}]}, *chat("a", "b")[1:]]}),
    ("not_text", {"messages": {"role": "user"}}),
    ("empty_turn", {"messages": chat("a", " \n")}),
    ("empty_turn", {"messages": [{"role": "user", "content": None}, *chat("a", "b")[1:]]}),
    ("empty_turn", {"messages": None}),
    ("nul", {"messages": chat("a\0", "b")}),
    ("lone_surrogate", {"messages": chat("a \ud800", "b")}),
]  # fmt: skip


def gym(*families: str, size: int = 20, **rest: Any) -> dict[str, Any]:
    return {"reasoning_gym": list(families), "size": size, **rest}


def hashes(records: list[Any]) -> set[str]:
    return {question_hash(record.messages) for record in records}
