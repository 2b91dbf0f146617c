"""posttrain.data: each row ends in one place, what is held out stays out, errors say the fix."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from posttrain import data
from posttrain.data import reading
from posttrain.errors import RecipeError, SetupError
from posttrain.rewards import verify
from posttrain.tables import read_table
from tests.builders import (
    BAD_ROWS,
    QA,
    chat,
    data_recipe,
    file_source,
    gym_source,
    load_bundle,
    write_jsonl,
)

# ---- the shapes of rows


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"messages": chat("hi", "hello")}, {}),
        ({"messages": chat("hi"), "answer": "hello"}, {}),
        ({"question": "hi", "answer": "hello"}, {}),
        ({"prompt": "hi", "completion": "hello"}, {}),
        ({"prompt": chat("hi"), "completion": chat("x", "hello")[1:]}, {}),
        ({"q": "hi", "a": "hello"}, {"question": "q", "answer": "a"}),
        (
            {"question": "no", "answer": "no", "q": "hi", "a": "hello"},
            {"prompt": "q", "answer": "a"},
        ),
        ({"talk": chat("hi", "hello"), "answer": "no"}, {"messages": "talk"}),
    ],
)
def test_each_layout_gives_the_same_conversation(
    row: dict[str, Any], columns: dict[str, str], tmp_path: Path
) -> None:
    write_jsonl(tmp_path, [row])
    bundle = load_bundle(data_recipe(sft=[file_source(columns=columns)]), tmp_path)
    assert [s.messages for s in bundle.samples] == [chat("hi", "hello")]
    rl = load_bundle(data_recipe(rl=[file_source(columns=columns, verifier="exact")]), tmp_path)
    assert [(p.messages, p.reference) for p in rl.prompts] == [(chat("hi"), "hello")]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "d.parquet")
    table = load_bundle(data_recipe(sft=[file_source("d.parquet", columns=columns)]), tmp_path)
    assert [s.sample_id for s in table.samples] == [s.sample_id for s in bundle.samples]


def test_system_and_suffix_frame_the_question(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path, [{"messages": chat("a", "b", "c", "d")}, {"messages": chat("e", "f", system="S")}]
    )
    bundle = load_bundle(
        data_recipe(sft=[file_source(system="Be brief.", suffix=" Now!")]), tmp_path
    )
    assert bundle.samples[0].messages == chat("a", "b", "c Now!", "d", system="Be brief.")
    assert bundle.samples[1].messages == chat("e Now!", "f", system="Be brief.\n\nS")


def test_a_worked_answer_is_taught_whole_and_compared_by_its_result(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path, [{"question": "2*36?", "answer": "36+36 = <<36+36=72>>72\n#### 72"}, QA[0]]
    )
    bundle = load_bundle(
        data_recipe(sft=[file_source(verifier="math")], rl=[file_source(verifier="math")]), tmp_path
    )
    sample, prompt = bundle.samples[0], bundle.prompts[0]
    assert sample.messages[-1]["content"].endswith("#### 72")
    assert sample.reference == prompt.reference == "72"
    assert verify(prompt, "It is 72.").passed is True
    task = data.prompt_of(sample)
    assert task is not None
    assert (task.messages, task.prompt_id) == (prompt.messages, prompt.prompt_id)
    assert (
        data.prompt_of(load_bundle(data_recipe(sft=[file_source()]), tmp_path).samples[0]) is None
    )


def test_a_number_is_an_answer(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [{"question": "?", "answer": 72}, {"question": "??", "answer": 0.5}])
    bundle = load_bundle(data_recipe(sft=[file_source()]), tmp_path)
    assert [s.messages[-1]["content"] for s in bundle.samples] == ["72", "0.5"]


# ---- bad rows


@pytest.mark.parametrize(
    ("reason", "row"), BAD_ROWS, ids=[f"{r}-{i}" for i, (r, _) in enumerate(BAD_ROWS)]
)
def test_a_bad_row_is_quarantined_with_line_and_reason(
    reason: str, row: bytes | dict[str, Any], tmp_path: Path
) -> None:
    good = {"messages": chat("a", "b")}
    write_jsonl(tmp_path, [good, b"", row, {"messages": chat("c", "d")}])
    bundle = load_bundle(data_recipe(sft=[file_source()], max_bad_rows=0.5), tmp_path)
    assert len(bundle.samples) == 2
    (left,) = bundle.quarantine
    assert (left["reason"], left["line"], left["malformed"]) == (reason, 3, True)
    assert left["source"] == "sft.data[0] d.jsonl"
    assert left["detail"]
    data.write_quarantine(tmp_path / "q.parquet", bundle.quarantine)
    assert read_table(tmp_path / "q.parquet") == bundle.quarantine


def test_a_line_of_more_than_10_mb_is_skipped_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 1000)
    long = {"messages": chat("x" * 3500, "b")}
    exact = json.dumps({"messages": chat("a", "b"), "pad": ""})
    exact = exact[:-2] + "p" * (1000 - len(exact)) + '"}'
    assert len(exact) == 1000
    write_jsonl(tmp_path, [long, exact.encode(), {"messages": chat("c", "d")}, long])
    bundle = load_bundle(data_recipe(sft=[file_source()], max_bad_rows=0.5), tmp_path)
    assert [s.messages[0]["content"] for s in bundle.samples] == ["a", "c"]
    assert [(q["line"], q["reason"]) for q in bundle.quarantine] == [
        (1, "too_long"),
        (4, "too_long"),
    ]


def test_bom_and_crlf_and_a_missing_last_newline_do_no_harm(tmp_path: Path) -> None:
    lines = [json.dumps({"messages": chat(c, "b")}).encode() for c in "xyz"]
    (tmp_path / "d.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    assert len(load_bundle(data_recipe(sft=[file_source()]), tmp_path).samples) == 3


def test_too_many_bad_rows_stop_the_run_and_leave_the_quarantine(tmp_path: Path) -> None:
    rows: list[Any] = [{"messages": chat(f"q{n}", "a")} for n in range(97)]
    write_jsonl(tmp_path, [*rows, b"{", b"{", {"messages": []}])
    path = tmp_path / "out" / "quarantine.parquet"
    with pytest.raises(data.BadRows, match=r"3 of 100 rows are unusable \(3\.00%") as caught:
        load_bundle(
            data_recipe(sft=[file_source()], max_bad_rows=0.02), tmp_path, quarantine_path=path
        )
    assert caught.value.exit_code == 4
    assert "2 broken_json, 1 missing_turn; the first, line 98" in caught.value.message
    assert read_table(path) == caught.value.quarantine
    assert len(caught.value.quarantine) == 3
    assert (
        len(load_bundle(data_recipe(sft=[file_source()], max_bad_rows=0.03), tmp_path).samples)
        == 97
    )


def test_duplicates_do_not_count_as_bad(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [{"messages": chat("q", "a")}] * 50)
    bundle = load_bundle(data_recipe(sft=[file_source()], max_bad_rows=0.0), tmp_path)
    assert len(bundle.samples) == 1
    assert Counter(q["reason"] for q in bundle.quarantine) == {"duplicate": 49}
    assert not any(q["malformed"] for q in bundle.quarantine)


def test_a_verifier_that_does_not_fit_stops_the_run(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path, [{"question": f"q{n}", "answer": "because the cat sat"} for n in range(9)]
    )
    with pytest.raises(data.BadRows, match=r"9 verifier_fit.*no mathematical expression"):
        load_bundle(data_recipe(rl=[file_source(verifier="math")]), tmp_path)


# ---- errors of the recipe


@pytest.mark.parametrize(
    ("columns", "said", "hint"),
    [
        ({}, "has no column messages, question or prompt, it has: problem, solution",
         "columns: {question: problem, answer: solution}"),
        ({"question": "problm"}, "no column 'problm', it has: problem, solution",
         "{question: problem}"),
        ({"question": "problem"}, "has no column answer or completion",
         "{question: problem, answer: solution}"),
    ],
)  # fmt: skip
def test_a_column_that_is_not_there_names_those_that_are(
    columns: dict[str, str], said: str, hint: str, tmp_path: Path
) -> None:
    row = {"problem": "1+1", "solution": "2"}
    write_jsonl(tmp_path, [row])
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "d.parquet")
    for name in ("d.jsonl", "d.parquet"):
        with pytest.raises(RecipeError) as caught:
            load_bundle(data_recipe(sft=[file_source(name, columns=columns)]), tmp_path)
        assert said in caught.value.message
        assert f"sft.data[0]: {name}" in caught.value.message
        assert hint in caught.value.hint


def test_errors_name_the_source(tmp_path: Path) -> None:
    write_jsonl(tmp_path, QA)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "wide.jsonl").write_text("{}", encoding="utf-16")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    (tmp_path / "d.csv").write_text("a,b")
    cases: list[tuple[dict[str, Any], str]] = [
        (file_source("none.jsonl"), r"sft\.data\[0\]: none\.jsonl: no such file"),
        (file_source("empty.jsonl"), r"empty\.jsonl holds no rows"),
        (file_source("wide.jsonl"), "is UTF-16"),
        (file_source("bad.parquet"), "not a readable Parquet file"),
        (file_source("./d.csv"), "is not a .jsonl, .ndjson, .json, .parquet file"),
        ({"reasoning_gym": {"chain_sum": {"min_terms": 9}}, "size": 3},
         "max_terms must be >= min_terms"),
        ({"reasoning_gym": ["boxnet"], "size": 3}, "0 usable questions .*no_answer"),
    ]  # fmt: skip
    for given_source, said in cases:
        with pytest.raises(RecipeError, match=said) as caught:
            load_bundle(data_recipe(sft=[given_source]), tmp_path)
        assert caught.value.hint


# ---- data sets by name, and counting


def test_a_folder_is_read_as_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set", QA, "train.jsonl")
    what = data_recipe(sft=[file_source(str(tmp_path / "set"), size=7)])
    assert len(load_bundle(what, tmp_path).samples) == 7
    with pytest.raises(RecipeError, match="nosuch"):
        load_bundle(data_recipe(sft=[file_source(str(tmp_path / "set"), split="nosuch")]), tmp_path)


def test_a_name_that_is_neither_file_nor_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import datasets.exceptions

    def absent(*args: Any, **kwargs: Any) -> Any:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'no/such' doesn't exist on the Hub")

    def offline(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", absent)
    with pytest.raises(
        RecipeError, match=r"sft\.data\[0\]: no/such is neither a file nor a data set"
    ):
        load_bundle(data_recipe(sft=[file_source("no/such")]), tmp_path)
    monkeypatch.setattr(datasets, "load_dataset_builder", offline)
    with pytest.raises(SetupError, match="cannot be fetched: no route"):
        load_bundle(data_recipe(sft=[file_source("no/such")]), tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SetupError, match="needs the package datasets") as caught:
        load_bundle(data_recipe(sft=[file_source("no/such")]), tmp_path)
    assert caught.value.hint == "pip install datasets"


def test_count_rows_is_cheap_and_right(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [*QA, b""])
    pq.write_table(pa.Table.from_pylist(QA), tmp_path / "d.parquet")
    what = data_recipe(
        sft=[file_source(), file_source("d.parquet", size=12)],
        rl=[gym_source("gcd", "lcm"), file_source(size=99)],
    )
    assert data.count_rows(what, find=lambda n: tmp_path / n) == {"sft": 52, "rl": 80}
    some = data_recipe(sft=[file_source("hub/name")], rl=[file_source("hub/name", size=9)])
    assert data.count_rows(some, find=lambda n: tmp_path / n) == {"sft": None, "rl": 9}
    assert data.count_rows(data_recipe(rl=[gym_source("gcd")]), find=Path) == {
        "sft": None,
        "rl": 20,
    }


def test_loading_imports_no_training_library() -> None:
    program = (
        "import sys; import posttrain.data; "
        "heavy = ('torch', 'datasets', 'transformers', 'reasoning_gym'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("columns", "row", "proposed"),
    [
        ({"question": "nope"}, {"question": "2+2", "answer": "4"}, "{question: question}"),
        ({"answer": "nope"}, {"question": "2+2", "solution": "4"}, "{answer: solution}"),
        ({"answer": "a", "question": "aa"}, {"a": "4", "b": "2+2"}, "{question: <your column>}"),
    ],
)
def test_a_column_of_another_field_is_not_proposed(
    columns: dict[str, str], row: dict[str, str], proposed: str, tmp_path: Path
) -> None:
    write_jsonl(tmp_path, [row])
    with pytest.raises(RecipeError) as caught:
        load_bundle(data_recipe(sft=[file_source(columns=columns)]), tmp_path)
    assert caught.value.hint == f"under sft.data[0] write columns: {proposed}"


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.parquet").touch()
    with pytest.raises(RecipeError, match=r"empty\.parquet is not a readable Parquet file"):
        reading.count_table("empty.parquet", lambda name: tmp_path / name, "rl.data[0]")
    pq.write_table(pa.Table.from_pylist(QA), tmp_path / "torn.parquet", compression="zstd")
    raw = bytearray((tmp_path / "torn.parquet").read_bytes())
    raw[4:200] = b"\xff" * 196
    (tmp_path / "torn.parquet").write_bytes(raw)
    with pytest.raises(RecipeError, match=r"sft\.data\[0\]: torn\.parquet is not a readable"):
        load_bundle(data_recipe(sft=[file_source("torn.parquet")]), tmp_path)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_told_from_broken_rows(indent: int | None, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps(QA, indent=indent))
    with pytest.raises(RecipeError, match=r"d\.json is one JSON array; JSONL has one object") as e:
        load_bundle(data_recipe(sft=[file_source("d.json")]), tmp_path)
    assert "d-rows.jsonl" in e.value.hint
