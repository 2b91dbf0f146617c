"""posttrain.data: each row ends in one place, what is held out stays out, errors say the fix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain import data
from posttrain.data import reading
from posttrain.errors import EnvironmentFault, RecipeError
from posttrain.recipe.schema import Recipe
from posttrain.records import Prompt, Sample, question_hash
from posttrain.rewards import verify
from posttrain.tables import read_table

many = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
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
    jsonl(tmp_path, [row])
    bundle = load(recipe(sft=[source(columns=columns)]), tmp_path)
    assert [s.messages for s in bundle.samples] == [chat("hi", "hello")]
    rl = load(recipe(rl=[source(columns=columns, verifier="exact")]), tmp_path)
    assert [(p.messages, p.reference) for p in rl.prompts] == [(chat("hi"), "hello")]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "d.parquet")
    table = load(recipe(sft=[source("d.parquet", columns=columns)]), tmp_path)
    assert [s.sample_id for s in table.samples] == [s.sample_id for s in bundle.samples]


def test_system_and_suffix_frame_the_question(tmp_path: Path) -> None:
    jsonl(
        tmp_path, [{"messages": chat("a", "b", "c", "d")}, {"messages": chat("e", "f", system="S")}]
    )
    bundle = load(recipe(sft=[source(system="Be brief.", suffix=" Now!")]), tmp_path)
    assert bundle.samples[0].messages == chat("a", "b", "c Now!", "d", system="Be brief.")
    assert bundle.samples[1].messages == chat("e Now!", "f", system="Be brief.\n\nS")


def test_a_worked_answer_is_taught_whole_and_compared_by_its_result(tmp_path: Path) -> None:
    jsonl(tmp_path, [{"question": "2*36?", "answer": "36+36 = <<36+36=72>>72\n#### 72"}, QA[0]])
    bundle = load(recipe(sft=[source(verifier="math")], rl=[source(verifier="math")]), tmp_path)
    sample, prompt = bundle.samples[0], bundle.prompts[0]
    assert sample.messages[-1]["content"].endswith("#### 72")
    assert sample.reference == prompt.reference == "72"
    assert verify(prompt, "It is 72.").passed is True
    task = data.prompt_of(sample)
    assert task is not None
    assert (task.messages, task.prompt_id) == (prompt.messages, prompt.prompt_id)
    assert data.prompt_of(load(recipe(sft=[source()]), tmp_path).samples[0]) is None


def test_a_number_is_an_answer(tmp_path: Path) -> None:
    jsonl(tmp_path, [{"question": "?", "answer": 72}, {"question": "??", "answer": 0.5}])
    bundle = load(recipe(sft=[source()]), tmp_path)
    assert [s.messages[-1]["content"] for s in bundle.samples] == ["72", "0.5"]


# ---- bad rows

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


@pytest.mark.parametrize(
    ("reason", "row"), BAD_ROWS, ids=[f"{r}-{i}" for i, (r, _) in enumerate(BAD_ROWS)]
)
def test_a_bad_row_is_quarantined_with_line_and_reason(
    reason: str, row: bytes | dict[str, Any], tmp_path: Path
) -> None:
    good = {"messages": chat("a", "b")}
    jsonl(tmp_path, [good, b"", row, {"messages": chat("c", "d")}])
    bundle = load(recipe(sft=[source()], max_bad_rows=0.5), tmp_path)
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
    jsonl(tmp_path, [long, exact.encode(), {"messages": chat("c", "d")}, long])
    bundle = load(recipe(sft=[source()], max_bad_rows=0.5), tmp_path)
    assert [s.messages[0]["content"] for s in bundle.samples] == ["a", "c"]
    assert [(q["line"], q["reason"]) for q in bundle.quarantine] == [
        (1, "too_long"),
        (4, "too_long"),
    ]


def test_bom_and_crlf_and_a_missing_last_newline_do_no_harm(tmp_path: Path) -> None:
    lines = [json.dumps({"messages": chat(c, "b")}).encode() for c in "xyz"]
    (tmp_path / "d.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    assert len(load(recipe(sft=[source()]), tmp_path).samples) == 3


def test_too_many_bad_rows_stop_the_run_and_leave_the_quarantine(tmp_path: Path) -> None:
    rows: list[Any] = [{"messages": chat(f"q{n}", "a")} for n in range(97)]
    jsonl(tmp_path, [*rows, b"{", b"{", {"messages": []}])
    path = tmp_path / "out" / "quarantine.parquet"
    with pytest.raises(data.BadRows, match=r"3 of 100 rows are unusable \(3\.00%") as caught:
        load(recipe(sft=[source()], max_bad_rows=0.02), tmp_path, quarantine_path=path)
    assert caught.value.exit_code == 4
    assert "2 broken_json, 1 missing_turn; the first, line 98" in caught.value.message
    assert read_table(path) == caught.value.quarantine
    assert len(caught.value.quarantine) == 3
    assert len(load(recipe(sft=[source()], max_bad_rows=0.03), tmp_path).samples) == 97


def test_duplicates_do_not_count_as_bad(tmp_path: Path) -> None:
    jsonl(tmp_path, [{"messages": chat("q", "a")}] * 50)
    bundle = load(recipe(sft=[source()], max_bad_rows=0.0), tmp_path)
    assert len(bundle.samples) == 1
    assert Counter(q["reason"] for q in bundle.quarantine) == {"duplicate": 49}
    assert not any(q["malformed"] for q in bundle.quarantine)


def test_a_verifier_that_does_not_fit_stops_the_run(tmp_path: Path) -> None:
    jsonl(tmp_path, [{"question": f"q{n}", "answer": "because the cat sat"} for n in range(9)])
    with pytest.raises(data.BadRows, match=r"9 verifier_fit.*no mathematical expression"):
        load(recipe(rl=[source(verifier="math")]), tmp_path)


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
    jsonl(tmp_path, [row])
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "d.parquet")
    for name in ("d.jsonl", "d.parquet"):
        with pytest.raises(RecipeError) as caught:
            load(recipe(sft=[source(name, columns=columns)]), tmp_path)
        assert said in caught.value.message
        assert f"sft.data[0]: {name}" in caught.value.message
        assert hint in caught.value.hint


def test_errors_name_the_source(tmp_path: Path) -> None:
    jsonl(tmp_path, QA)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "wide.jsonl").write_text("{}", encoding="utf-16")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    (tmp_path / "d.csv").write_text("a,b")
    cases: list[tuple[dict[str, Any], str]] = [
        (source("none.jsonl"), r"sft\.data\[0\]: none\.jsonl: no such file"),
        (source("empty.jsonl"), r"empty\.jsonl holds no rows"),
        (source("wide.jsonl"), "is UTF-16"),
        (source("bad.parquet"), "not a readable Parquet file"),
        (source("./d.csv"), "neither .jsonl nor .parquet"),
        ({"reasoning_gym": ["chain_sun"], "size": 3},
         "no family 'chain_sun', the nearest is 'chain_sum'"),
        ({"reasoning_gym": {"chain_sum": {"min_term": 2}}, "size": 3},
         "'chain_sum' has no configuration key 'min_term', it has: .*min_terms"),
        ({"reasoning_gym": {"chain_sum": {"min_terms": 9}}, "size": 3},
         "max_terms must be >= min_terms"),
        ({"reasoning_gym": ["boxnet"], "size": 3}, "0 usable questions .*no_answer"),
    ]  # fmt: skip
    for given_source, said in cases:
        with pytest.raises(RecipeError, match=said) as caught:
            load(recipe(sft=[given_source]), tmp_path)
        assert caught.value.hint
    with pytest.raises(RecipeError, match=r"rl\.data\[0\]: nothing can decide answers"):
        load(recipe(rl=[source()]), tmp_path)


# ---- held out


def hashes(records: list[Any]) -> set[str]:
    return {question_hash(record.messages) for record in records}


def test_held_out_questions_leave_every_training_source(tmp_path: Path) -> None:
    jsonl(tmp_path, QA)
    jsonl(
        tmp_path,
        [{"messages": chat(f" {row['question']}\n", "so", "ok", "fine")} for row in QA[:2]]
        + [{"messages": chat(f"{row['question']}  ", row["answer"], system="S")} for row in QA],
        "e.jsonl",
    )
    bundle = load(
        recipe(
            sft=[source("e.jsonl")],
            rl=[source(verifier="math"), source("d.jsonl", verifier="exact")],
            heldout=10,
        ),
        tmp_path,
    )
    held = bundle.suites["heldout"]
    assert len(held) == 10
    assert not hashes(held) & (hashes(bundle.samples) | hashes(bundle.prompts))
    reasons = Counter((q["source"], q["reason"]) for q in bundle.quarantine)
    assert reasons["sft.data[0] e.jsonl", "heldout"] == len(hashes(held))
    assert len(bundle.samples) == 42 - len(hashes(held))
    assert len(bundle.prompts) == 80 - 10 - sum(
        n for (where, _), n in reasons.items() if where.startswith("rl")
    )


def test_a_suffix_hides_no_overlap(tmp_path: Path) -> None:
    jsonl(tmp_path, QA)
    what = recipe(
        sft=[source(suffix=" Think.")], rl=[source(verifier="math", suffix=" Answer:")], heldout=8
    )
    bundle = load(what, tmp_path)
    asked = {p.messages[-1]["content"].removesuffix(" Answer:") for p in bundle.suites["heldout"]}
    taught = {s.messages[0]["content"].removesuffix(" Think.") for s in bundle.samples}
    assert len(asked) == 8
    assert not asked & taught
    assert len(bundle.samples) == 32


def test_assert_disjoint_sees_a_leak(tmp_path: Path) -> None:
    jsonl(tmp_path, QA)
    bundle = load(recipe(sft=[source()], rl=[source(verifier="math")], heldout=8), tmp_path)
    leaked = bundle.suites["heldout"][0]
    turns = [*leaked.messages, {"role": "assistant", "content": "leak"}]
    bundle.samples.append(Sample.make(messages=turns, capability="other"))  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="'heldout' and the training data share"):
        data.assert_disjoint(bundle)


def test_which_prompts_are_held_out_depends_on_seed_not_on_order(tmp_path: Path) -> None:
    jsonl(tmp_path, QA)
    jsonl(tmp_path, QA[::-1], "r.jsonl")
    held: list[set[str]] = []
    for name, seed in (("d.jsonl", 0), ("r.jsonl", 0), ("d.jsonl", 1)):
        what = recipe(rl=[source(name, verifier="math")], heldout=8)
        held.append(hashes(load(what, tmp_path, seed=seed).suites["heldout"]))
    assert held[0] == held[1]
    assert held[0] != held[2]


def test_too_few_rows_to_hold_out(tmp_path: Path) -> None:
    jsonl(tmp_path, QA)
    with pytest.raises(RecipeError, match=r"40 usable rows, and eval\.heldout_size sets aside 40"):
        load(recipe(rl=[source(verifier="math")], heldout=40), tmp_path)


def test_size_takes_that_many_after_the_held_out(tmp_path: Path) -> None:
    jsonl(tmp_path, QA)
    bundle = load(
        recipe(sft=[source(size=5)], rl=[source(verifier="math", size=12)], heldout=8), tmp_path
    )
    assert (len(bundle.prompts), len(bundle.suites["heldout"]), len(bundle.samples)) == (12, 8, 5)


rows = st.one_of(
    st.sampled_from(QA[:6]),
    st.sampled_from([row for _, row in BAD_ROWS[:8]]),
    st.builds(lambda q, a: {"question": q, "answer": a}, st.text(max_size=3), st.text(max_size=3)),
)


@many
@given(
    st.lists(rows, max_size=25),
    st.lists(rows, max_size=25),
    st.lists(rows, max_size=9),
    st.integers(1, 4),
)
def test_nothing_is_lost_and_nothing_doubled(
    tmp_path: Path, first: list[Any], second: list[Any], third: list[Any], heldout: int
) -> None:
    """Each non-blank line, known by source and line, is in exactly one of the four places."""
    files = {"a.jsonl": [*first, QA[20]], "b.jsonl": second + QA[7:12], "c.jsonl": [*third, QA[30]]}
    for name, lines in files.items():
        jsonl(tmp_path, lines, name)
    what = recipe(
        sft=[source("a.jsonl", suffix="!")],
        rl=[source("b.jsonl", verifier="exact")],
        suites=[{"name": "extra", "data": [source("c.jsonl", verifier="exact")]}],
        heldout=heldout,
        max_bad_rows=1.0,
    )
    bundle = load(what, tmp_path)
    places: list[tuple[str, int]] = [
        (record.meta["source"], record.meta["line"])
        for record in (
            *bundle.samples,
            *bundle.prompts,
            *(p for s in bundle.suites.values() for p in s),
        )
    ]
    places += [(left["source"].rpartition(" ")[2], left["line"]) for left in bundle.quarantine]
    expected = [(name, line) for name, lines in files.items() for line in range(1, len(lines) + 1)]
    assert sorted(places) == sorted(expected)
    assert len({s.sample_id for s in bundle.samples}) == len(bundle.samples)
    assert len({p.prompt_id for p in bundle.prompts}) == len(bundle.prompts)
    assert not hashes([p for s in bundle.suites.values() for p in s]) & hashes(bundle.prompts)


# ---- reasoning_gym


def gym(*families: str, size: int = 20, **rest: Any) -> dict[str, Any]:
    return {"reasoning_gym": list(families), "size": size, **rest}


def test_families_give_sized_disjoint_scorable_sets(tmp_path: Path) -> None:
    level = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    what = recipe(
        sft=[gym("chain_sum", "gcd", size=30, suffix=" Number only.")],
        rl=[{"reasoning_gym": {"chain_sum": level, "countdown": {}}, "size": 25}],
        suites=[{"name": "hard", "data": [gym("gcd", size=15, capability="number theory")]}],
        heldout=20,
    )
    bundle = load(what, tmp_path)
    assert Counter(s.capability for s in bundle.samples) == {"chain_sum": 30, "gcd": 30}
    assert Counter(p.capability for p in bundle.prompts) == {"chain_sum": 25, "countdown": 25}
    held = Counter(p.capability for p in bundle.suites["heldout"])
    assert held == {"chain_sum": 20, "countdown": 20}
    assert Counter(p.capability for p in bundle.suites["hard"]) == {"number theory": 15}
    assert bundle.prompts[0].level == "max_digits=1 max_terms=2 min_digits=1 min_terms=2"
    for sample in bundle.samples:
        prompt = data.prompt_of(sample)
        assert prompt is not None
        assert prompt.messages[-1]["content"].endswith(" Number only.")
        assert verify(prompt, sample.messages[-1]["content"]).passed is True
    for prompt in (*bundle.prompts, *bundle.suites["heldout"]):
        assert verify(prompt, prompt.reference).passed is True
        assert verify(prompt, "no").passed is False


def test_held_out_size_is_per_capability_over_its_families(tmp_path: Path) -> None:
    bundle = load(
        recipe(rl=[gym("chain_sum", "gcd", "lcm", capability="math")], heldout=10), tmp_path
    )
    families = Counter(p.meta["family"] for p in bundle.suites["heldout"])
    assert families == {"chain_sum": 4, "gcd": 3, "lcm": 3}
    assert len(bundle.prompts) == 60


def test_a_small_family_is_drawn_to_its_end_and_that_is_said(tmp_path: Path) -> None:
    # a + b and a - b with a and b in 0..9: 200 questions.
    level = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    bundle = load(
        recipe(rl=[{"reasoning_gym": {"chain_sum": level}, "size": 500}], heldout=10), tmp_path
    )
    assert len(bundle.prompts) == 190
    assert len({p.prompt_id for p in (*bundle.prompts, *bundle.suites["heldout"])}) == 200
    assert bundle.notes == [
        "rl.data[0] reasoning_gym:chain_sum: 190 usable questions for rl, 500 were asked for: "
        "the family has no more at this level"
    ]


def test_two_sources_of_one_family_do_not_repeat_each_other(tmp_path: Path) -> None:
    bundle = load(recipe(rl=[gym("countdown"), gym("countdown")]), tmp_path)
    assert len(bundle.prompts) == 40
    assert not bundle.quarantine


def test_a_source_gives_the_same_whatever_stands_beside_it(tmp_path: Path) -> None:
    one = load(recipe(rl=[gym("gcd")]), tmp_path)
    two = load(recipe(sft=[gym("gcd")], rl=[gym("lcm"), gym("gcd")]), tmp_path)
    gcd = [p for p in two.prompts if p.capability == "gcd"]
    assert gcd == one.prompts
    assert not hashes(two.samples) & hashes(two.prompts)
    assert load(recipe(rl=[gym("gcd")]), tmp_path, seed=1).prompts != one.prompts


def test_families_without_an_answer_still_make_prompts(tmp_path: Path) -> None:
    bundle = load(recipe(rl=[gym("propositional_logic", size=5)]), tmp_path)
    assert [p.reference for p in bundle.prompts] == [""] * 5
    own = bundle.prompts[0].meta["entry"]["metadata"]["example_answer"]
    assert verify(bundle.prompts[0], own).passed is True


def test_the_tables_are_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from posttrain.data import load_data; from posttrain.recipe.schema import Recipe\n"
        "from posttrain.records import Prompt\n"
        "from posttrain.tables import file_sha256, write_records\n"
        "if __name__ == '__main__':\n"
        "    r = Recipe.model_validate({'model': {'base': 'm'}, 'rl': {'data': [{'reasoning_gym':"
        " ['word_ladder', 'chain_sum'], 'size': 8}]}, 'eval': {'heldout_size': 4}})\n"
        "    b = load_data(r, find=Path, seed=3); p = Path(sys.argv[1])\n"
        "    write_records(p, b.prompts + b.suites['heldout'], Prompt); print(file_sha256(p))\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / f"{seed}.parquet")],
            env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1


# ---- data sets by name, and counting


def test_a_folder_is_read_as_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    jsonl(tmp_path / "set", QA, "train.jsonl")
    what = recipe(sft=[source(str(tmp_path / "set"), size=7)])
    assert len(load(what, tmp_path).samples) == 7
    with pytest.raises(RecipeError, match="nosuch"):
        load(recipe(sft=[source(str(tmp_path / "set"), split="nosuch")]), tmp_path)


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
        load(recipe(sft=[source("no/such")]), tmp_path)
    monkeypatch.setattr(datasets, "load_dataset_builder", offline)
    with pytest.raises(EnvironmentFault, match="cannot be fetched: no route"):
        load(recipe(sft=[source("no/such")]), tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EnvironmentFault, match="needs the package datasets") as caught:
        load(recipe(sft=[source("no/such")]), tmp_path)
    assert caught.value.hint == "pip install datasets"


def test_count_rows_is_cheap_and_right(tmp_path: Path) -> None:
    jsonl(tmp_path, [*QA, b""])
    pq.write_table(pa.Table.from_pylist(QA), tmp_path / "d.parquet")
    what = recipe(
        sft=[source(), source("d.parquet", size=12)], rl=[gym("gcd", "lcm"), source(size=99)]
    )
    assert data.count_rows(what, find=lambda n: tmp_path / n) == {"sft": 52, "rl": 80}
    some = recipe(sft=[source("hub/name")], rl=[source("hub/name", size=9)])
    assert data.count_rows(some, find=lambda n: tmp_path / n) == {"sft": None, "rl": 9}
    assert data.count_rows(recipe(rl=[gym("gcd")]), find=Path) == {"sft": None, "rl": 20}


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


def test_prompts_and_samples_survive_their_tables(tmp_path: Path) -> None:
    from posttrain.tables import read_records, write_records

    bundle = load(
        recipe(sft=[gym("rearc", size=3)], rl=[gym("rearc", "countdown", size=3)]), tmp_path
    )
    write_records(tmp_path / "p.parquet", bundle.prompts, Prompt)
    write_records(tmp_path / "s.parquet", bundle.samples, Sample)
    prompts = read_records(tmp_path / "p.parquet", Prompt)
    assert prompts == bundle.prompts
    assert read_records(tmp_path / "s.parquet", Sample) == bundle.samples
    assert all(verify(prompt, prompt.reference).passed for prompt in prompts)
