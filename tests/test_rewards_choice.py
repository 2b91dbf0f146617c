"""Verifier `choice`: one option, by label or by text, and nothing that names two."""

# Letters of other scripts that look like ours are what is tested.
# ruff: noqa: RUF001

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.records import Prompt
from posttrain.rewards import check_reference, verify

CITIES = {"A": "Paris", "B": "Rome", "C": "Oslo", "D": "New York"}


def prompt(reference: Any, **meta: Any) -> Prompt:
    text = reference if isinstance(reference, str) else json.dumps(reference)
    return Prompt.make(
        messages=[{"role": "user", "content": "?"}],
        reference=text,
        verifier="choice",
        capability="c",
        meta=meta,
    )


ROME = prompt({"options": CITIES, "answer": "B"})


@pytest.mark.parametrize(
    "text",
    [
        "B", "b", " B. ", "(B)", "[B]", "B)", "**B**", "$B$", "\\boxed{B}", "\\boxed{\\text{B}}",
        "B. Rome", "(B) Rome", "B: Rome", "Rome", "rome.", "The answer is B", "The answer is (B).",
        "The answer is B because Italy's capital has been there since 1871.",
        "Let me think.\nItaly is meant.\nAnswer: B", "#### B", "<answer>B</answer>",
        "I think the correct option is B.", "So the correct answer is Rome.", "Option B",
        "It must be B", "A dog barks in Italy.\nB", "I say it is (B)", "Paris is in France.\nB",
        "答案是B", "答案:B", "ответ: B", "Ｂ",
    ],
)  # fmt: skip
def test_the_right_option(text: str) -> None:
    outcome = verify(ROME, text)
    assert outcome.passed is True, outcome
    assert outcome.extracted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("A", "got A"), ("Paris", "got A"), ("(A) Paris", "got A"), ("The answer is C.", "got C"),
        ("A or B", "several"), ("A, B", "several"), ("A/B", "several"), ("AB", "no choice"),
        ("(A)(B)", "several"), ("both A and B", "several"), ("Rome or Paris", "several"),
        ("B. Paris", "several"), ("A. Rome", "several"), ("Not A but B", "several"),
        ("The answer is A or B.", "several"), ("\\boxed{A, B}", "several"),
        ("A B C D", "several"), ("A. Paris\nB. Rome\nC. Oslo\nD. New York", "got D"),
        ("any of them", "no choice"), ("E", "no choice"), ("I do not know", "no choice"),
        ("В", "no choice"), ("Romeo", "no choice"), ("a", "got A"), ("I think so", "no choice"),
        ("B?\nNo: A", "got A"), ("The answer is B.\nThe answer is A.", "got A"),
        ("B or Paris", "several"), ("Rome, i.e. C", "several"),
    ],
)  # fmt: skip
def test_anything_else(text: str, why: str) -> None:
    outcome = verify(ROME, text)
    assert outcome.passed is False, outcome
    assert why in outcome.why


@given(st.lists(st.sampled_from("ABCD"), min_size=2, max_size=4, unique=True), st.data())
def test_two_options_never_pass(labels: list[str], data: st.DataObject) -> None:
    joint = data.draw(st.sampled_from([" or ", ", ", "/", " and ", " ", ") (", " vs. "]))
    frame = data.draw(
        st.sampled_from(["{}", "({})", "The answer is {}.", "\\boxed{{{}}}", "**{}**"])
    )
    text = frame.format(joint.join(labels))
    for right in CITIES:
        assert verify(prompt({"options": CITIES, "answer": right}), text).passed is False


@given(st.sampled_from("ABCD"), st.sampled_from("ABCD"))
def test_exactly_the_right_label_passes(right: str, chosen: str) -> None:
    task = prompt({"options": CITIES, "answer": right})
    for text in (chosen, f"({chosen})", CITIES[chosen], f"{chosen}. {CITIES[chosen]}"):
        assert verify(task, text).passed is (right == chosen)


def test_options_that_hold_labels_and_one_another() -> None:
    task = prompt({"options": ["a cat", "a", "type B blood", "cat and dog"], "answer": "C"})
    assert verify(task, "type B blood").passed is True
    assert verify(task, "C. type B blood").passed is True
    assert verify(task, "a cat").passed is False
    assert verify(prompt({"options": ["1", "10"], "answer": "10"}), "10").passed is True


def test_labels_of_other_scripts() -> None:
    task = prompt({"options": {"甲": "北京", "乙": "上海"}, "answer": "乙"})
    assert verify(task, "乙").passed is True
    assert verify(task, "答案是上海").passed is True
    assert verify(task, "甲").passed is False
    assert verify(task, "甲 乙").passed is False


def test_a_letter_alone_and_options_beside_it() -> None:
    assert verify(prompt("B"), "The answer is (B).").passed is True
    assert verify(prompt("B"), "The answer is (E).").passed is False
    assert verify(prompt("(B)", options=["Paris", "Rome"]), "Rome").passed is True


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("", "neither a letter nor JSON"),
        ("Rome", "neither a letter nor JSON"),
        ("{not json", "no JSON"),
        ({"options": CITIES}, "must be"),
        ({"options": CITIES, "answer": "E"}, "none of the options A, B, C, D"),
        ({"options": {"A": "Paris"}, "answer": "A"}, "at least two"),
        ({"options": {"A": "Paris", "B": "paris."}, "answer": "A"}, "the same"),
        ({"options": {"A": "Paris", "B": None}, "answer": "A"}, "at least two"),
        ({"options": "Paris, Rome", "answer": "A"}, "mapping"),
        ({"options": CITIES, "answer": "Rome"}, None),
        ({"options": list(CITIES.values()), "answer": "d"}, None),
        ("C", None),
    ],
)
def test_fits(reference: Any, why: str | None) -> None:
    found = check_reference(prompt(reference))
    assert found is None if why is None else why in str(found)
    if why is not None:
        assert verify(prompt(reference), "A").passed is None
