"""Shaping moves the reward of passed answers, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from posttrain.rewards.shaping import (
    FormatTerm,
    LanguageTerm,
    LengthTerm,
    Shaping,
    mean_terms,
    script_share,
    shaped_rewards,
    shaping_terms,
)
from tests.builders import make_group

ALL = Shaping(
    length=LengthTerm(weight=0.2, free_tokens=1, full_tokens=3),
    format=FormatTerm(weight=0.1, pattern=r"^<answer>"),
    language=LanguageTerm(weight=0.2, script="latin"),
)
"""Groups of conftest have two tokens an answer: half of the length term."""

outcomes = st.lists(st.sampled_from([0, 1, None]), min_size=2, max_size=8)


@given(outcomes, st.lists(st.sampled_from(["<answer>ab", "где", "x" * 50, ""]), min_size=8))
def test_no_shaping_makes_a_failure_worth_a_pass(
    passed: list[int | None], texts: list[str]
) -> None:
    group = make_group(passed, texts=texts[: len(passed)])
    rewards = shaped_rewards(group, ALL)
    for won, reward in zip(passed, rewards, strict=True):
        if won is None:
            assert reward is None
        elif won == 0:
            assert reward == 0.0
        else:
            assert reward is not None
            assert 0.5 <= reward <= 1.5


@given(outcomes, st.lists(st.sampled_from(["<answer>ab", "где", ""]), min_size=8))
def test_a_group_without_signal_is_left_as_it_is(
    passed: list[int | None], texts: list[str]
) -> None:
    group = make_group(passed, texts=texts[: len(passed)])
    if not group.has_signal:
        assert shaped_rewards(group, ALL) == [None if w is None else float(w) for w in passed]


def test_terms_one_by_one() -> None:
    group = make_group([1, 1, 0], texts=["<answer>ab", "где <answer>", "<answer>ab"])
    assert shaping_terms(group.rollouts[0], ALL) == pytest.approx(
        {"length": -0.1, "format": 0.1, "language": 0.2}
    )
    assert shaping_terms(group.rollouts[1], ALL) == pytest.approx(
        {"length": -0.1, "format": 0.0, "language": 0.0}
    )
    assert shaped_rewards(group, ALL) == pytest.approx([1.2, 0.9, 0.0])
    assert shaped_rewards(group, None) == [1.0, 1.0, 0.0]
    assert mean_terms([group, make_group([1, 1])], ALL) == pytest.approx(
        {"length": -0.1, "format": 0.05, "language": 0.1}
    )
    assert mean_terms([make_group([0, 0])], ALL) == {}


@pytest.mark.parametrize(("num", "taken"), [(1, 0.0), (2, 0.05), (3, 0.1), (40, 0.1)])
def test_length_is_taken_along_a_ramp(num: int, taken: float) -> None:
    term = Shaping(length=LengthTerm(weight=0.1, free_tokens=1, full_tokens=3))
    rollout = make_group([1]).rollouts[0]
    longer = type(rollout)(
        completion_ids=[7] * num,
        logprobs=[-1.0] * num,
        text="",
        finish_reason="stop",
        outcome=rollout.outcome,
    )
    assert shaping_terms(longer, term) == pytest.approx({"length": -taken})


@pytest.mark.parametrize(
    ("text", "script", "share"),
    [
        ("12 + 3", "latin", 1.0),
        ("año", "latin", 1.0),
        ("привет", "cyrillic", 1.0),
        ("你好", "cjk", 1.0),
        ("你好 ok", "cjk", 0.5),
        ("ひらがな", "hiragana", 1.0),
    ],
)
def test_script_share(text: str, script: str, share: float) -> None:
    assert script_share(text, script) == share


@pytest.mark.parametrize(
    "values",
    [
        {"length": {"weight": 0.3, "free_tokens": 1, "full_tokens": 2},
         "format": {"weight": 0.3, "pattern": "x"}},
        {"length": {"free_tokens": 5, "full_tokens": 5}},
        {"format": {"pattern": "("}},
        {"language": {"script": "klingon"}},
    ],
)  # fmt: skip
def test_what_would_outweigh_passing_or_means_nothing_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Shaping.model_validate(values)
