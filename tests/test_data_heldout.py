"""What is held out stays out of training, and every row ends in one place."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain import data
from posttrain.errors import RecipeError
from posttrain.records import Sample
from tests.builders import (
    BAD_ROWS,
    QA,
    chat,
    data_recipe,
    file_source,
    load_bundle,
    question_hashes,
    write_jsonl,
)

many = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def test_held_out_questions_leave_every_training_source(tmp_path: Path) -> None:
    write_jsonl(tmp_path, QA)
    write_jsonl(
        tmp_path,
        [{"messages": chat(f" {row['question']}\n", "so", "ok", "fine")} for row in QA[:2]]
        + [{"messages": chat(f"{row['question']}  ", row["answer"], system="S")} for row in QA],
        "e.jsonl",
    )
    bundle = load_bundle(
        data_recipe(
            sft=[file_source("e.jsonl")],
            rl=[file_source(verifier="math"), file_source("d.jsonl", verifier="exact")],
            heldout=10,
        ),
        tmp_path,
    )
    held = bundle.suites["heldout"]
    assert len(held) == 10
    assert not question_hashes(held) & (
        question_hashes(bundle.samples) | question_hashes(bundle.prompts)
    )
    reasons = Counter((q["source"], q["reason"]) for q in bundle.quarantine)
    assert reasons["sft.data[0] e.jsonl", "heldout"] == len(question_hashes(held))
    assert len(bundle.samples) == 42 - len(question_hashes(held))
    assert len(bundle.prompts) == 80 - 10 - sum(
        n for (where, _), n in reasons.items() if where.startswith("rl")
    )


def test_a_suffix_hides_no_overlap(tmp_path: Path) -> None:
    write_jsonl(tmp_path, QA)
    what = data_recipe(
        sft=[file_source(suffix=" Think.")],
        rl=[file_source(verifier="math", suffix=" Answer:")],
        heldout=8,
    )
    bundle = load_bundle(what, tmp_path)
    asked = {p.messages[-1]["content"].removesuffix(" Answer:") for p in bundle.suites["heldout"]}
    taught = {s.messages[0]["content"].removesuffix(" Think.") for s in bundle.samples}
    assert len(asked) == 8
    assert not asked & taught
    assert len(bundle.samples) == 32


def test_assert_disjoint_sees_a_leak(tmp_path: Path) -> None:
    write_jsonl(tmp_path, QA)
    bundle = load_bundle(
        data_recipe(sft=[file_source()], rl=[file_source(verifier="math")], heldout=8), tmp_path
    )
    leaked = bundle.suites["heldout"][0]
    turns = [*leaked.messages, {"role": "assistant", "content": "leak"}]
    bundle.samples.append(Sample.make(messages=turns, capability="other"))  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="'heldout' and the training data share"):
        data.assert_disjoint(bundle)


def test_which_prompts_are_held_out_depends_on_seed_not_on_order(tmp_path: Path) -> None:
    write_jsonl(tmp_path, QA)
    write_jsonl(tmp_path, QA[::-1], "r.jsonl")
    held: list[set[str]] = []
    for name, seed in (("d.jsonl", 0), ("r.jsonl", 0), ("d.jsonl", 1)):
        what = data_recipe(rl=[file_source(name, verifier="math")], heldout=8)
        held.append(question_hashes(load_bundle(what, tmp_path, seed=seed).suites["heldout"]))
    assert held[0] == held[1]
    assert held[0] != held[2]


def test_too_few_rows_to_hold_out(tmp_path: Path) -> None:
    write_jsonl(tmp_path, QA)
    with pytest.raises(RecipeError, match=r"40 usable rows, and eval\.heldout_size sets aside 40"):
        load_bundle(data_recipe(rl=[file_source(verifier="math")], heldout=40), tmp_path)


def test_size_takes_that_many_after_the_held_out(tmp_path: Path) -> None:
    write_jsonl(tmp_path, QA)
    bundle = load_bundle(
        data_recipe(
            sft=[file_source(size=5)], rl=[file_source(verifier="math", size=12)], heldout=8
        ),
        tmp_path,
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
        write_jsonl(tmp_path, lines, name)
    what = data_recipe(
        sft=[file_source("a.jsonl", suffix="!")],
        rl=[file_source("b.jsonl", verifier="exact")],
        suites=[{"name": "extra", "data": [file_source("c.jsonl", verifier="exact")]}],
        heldout=heldout,
        max_bad_rows=1.0,
    )
    bundle = load_bundle(what, tmp_path)
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
    assert not question_hashes([p for s in bundle.suites.values() for p in s]) & question_hashes(
        bundle.prompts
    )


def test_a_file_that_is_listed_twice_is_told_as_duplicates(tmp_path: Path) -> None:
    write_jsonl(tmp_path, QA)
    twice = [file_source(verifier="math"), file_source(verifier="math")]
    with pytest.raises(RecipeError, match=r"0 usable rows of 40 read \(40 duplicate left out") as e:
        load_bundle(data_recipe(rl=twice, heldout=4), tmp_path)
    assert e.value.hint == "give rl.data[1] more rows, each once"
