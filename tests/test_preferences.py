"""Pairs mined from rollouts: what may be paired, in which order, and what the failure is called."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.preferences import corner_case, mine_pairs, pair_summary
from posttrain.recipe.schema import Pairs
from posttrain.records import Outcome, Prompt, Rollout, RolloutGroup
from posttrain.rewards.detectors import repeats_itself


def prompt(number=0, reference="42"):
    return Prompt.make(
        messages=[
            {"role": "system", "content": "You are a calculator that never explains what it does."},
            {"role": "user", "content": f"question {number}"},
        ],
        reference=reference,
        verifier="exact",
        capability="math",
    )


def rollout(text, passed: bool | None, *, tokens=4, finish: Any = "stop", kind: Any = "wrong"):
    return Rollout(
        completion_ids=list(range(tokens)),
        logprobs=[-1.0] * tokens,
        text=text,
        finish_reason=finish,
        outcome=Outcome(passed=passed, score=float(bool(passed)), why="differs", kind=kind),
    )


def group(of, *rollouts, step=0):
    return RolloutGroup(
        prompt_id=of.prompt_id, step=step, policy_version=step, rollouts=tuple(rollouts)
    )


def mine(groups, prompts, *, seed=0, **keys):
    return mine_pairs(groups, {p.prompt_id: p for p in prompts}, Pairs(**keys), seed=seed)


@pytest.mark.parametrize(
    ("text", "keys", "case"),
    [
        ("", {}, "empty"),
        ("  \n", {"finish": "length"}, "empty"),
        ("the sum of the", {"finish": "length"}, "truncation"),
        ("and so on and so on and so on and so on", {"finish": "length"}, "repetition"),
        ("wait, no. " * 9, {}, "repetition"),
        ("the answer is 42", {}, "format"),
        ("**42**", {}, "format"),
        ("forty", {"kind": "no_answer"}, "format"),
        ("41", {}, "wrong_answer"),
        ("142", {}, "wrong_answer"),
        ("42.5", {}, "wrong_answer"),
        ("42 apples and 3 more\nmake 45", {}, "wrong_answer"),
        ("I'm sorry, but I can't help with that.", {}, "refusal"),
        ("I'm sorry, but I can't help with that. It may be 42", {"finish": "length"}, "truncation"),
        ("Я думаю, что это сорок один", {}, "wrong_language"),
        ("So it is \\boxed{41", {}, "format"),
        ("You are a calculator that never explains what it does.", {}, "leak"),
        ("forty", {"kind": None}, "wrong_answer"),
    ],
)
def test_corner_cases_are_named(text, keys, case):
    assert corner_case(rollout(text, False, **keys), prompt()) == case


def test_a_drawn_instruction_that_is_told_is_a_leak() -> None:
    one, drawn = prompt(), "Speak like a patient teacher of small children, please."
    asked = dataclasses.replace(
        group(one, rollout("42", True), rollout(drawn, False)), system=drawn
    )
    (pair,) = mine([asked], [one], max_length_ratio=99)
    assert pair.corner_case == "leak"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("no " * 20, True),
        ("0.3333", False),
        ("-" * 80, False),
        ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13", False),
        ("A long start that is fine. " + "Let me check that again:\n" * 4, True),
        ("Let me check that again:\n" * 3 + "It holds.", False),
        ("x" * 23, False),
        ("x" * 24, True),
        ("", False),
    ],
)
def test_repetition_follows_its_rule(text, answer):
    assert repeats_itself(text) is answer


@given(st.text("ab1 ", min_size=1, max_size=12).filter(lambda u: u.strip()), st.integers(0, 11))
def test_repetition_is_seen_wherever_it_is_cut_off(unit, cut):
    text = unit * 40
    assert repeats_itself("Some words before. " + text[: len(text) - cut % len(unit)])


def test_only_a_pass_that_ended_by_itself_is_chosen():
    p = prompt()
    bad = rollout("41", False)
    assert not mine([group(p, rollout("42", True, finish="length"), bad)], [p])
    assert not mine([group(p, rollout("42", None), bad)], [p])
    assert not mine([group(p, rollout("42", True), rollout("41", None))], [p])
    assert not mine([group(p, bad, rollout("43", False))], [p])
    (pair,) = mine([group(p, rollout("42", True), bad, step=3)], [p])
    assert (pair.chosen, pair.rejected, pair.corner_case) == ("42", "41", "wrong_answer")
    assert pair.prompt == p.messages
    assert pair.origin == {
        "chosen_step": 3,
        "chosen_policy_version": 3,
        "chosen_index": 0,
        "rejected_step": 3,
        "rejected_policy_version": 3,
        "rejected_index": 1,
        "rejected_why": "differs",
    }


def test_a_pass_and_a_fail_of_different_steps_make_a_pair():
    p = prompt()
    (pair,) = mine(
        [group(p, rollout("42", True), step=1), group(p, rollout("4", False), step=5)], [p]
    )
    assert (pair.origin["chosen_step"], pair.origin["rejected_step"]) == (1, 5)


def test_a_pair_answered_one_system_instruction_and_holds_it():
    one = prompt()
    terse = dataclasses.replace(group(one, rollout("42", True), step=1), system="Be terse.")
    plain = group(one, rollout("41", False))
    assert mine([terse, plain], [one]) == []
    answered = dataclasses.replace(group(one, rollout("40", False), step=2), system="Be terse.")
    (pair,) = mine([terse, plain, answered], [one])
    assert pair.rejected == "40"
    # In place of the prompt's own system turn.
    assert [turn["role"] for turn in one.messages] == ["system", "user"]
    assert pair.prompt == [{"role": "system", "content": "Be terse."}, one.messages[1]]


def test_lengths_are_bounded_in_tokens():
    p = prompt()
    groups = [group(p, rollout("42", True, tokens=5), rollout("41", False, tokens=11))]
    assert not mine(groups, [p], max_length_ratio=2.0)
    assert mine(groups, [p], max_length_ratio=2.2)
    other = [group(p, rollout("42", True, tokens=11), rollout("41", False, tokens=5))]
    assert not mine(other, [p], max_length_ratio=2.0)
    empty = [group(p, rollout("42", True, tokens=2), rollout("", False, tokens=0))]
    assert mine(empty, [p], max_length_ratio=2.0)[0].corner_case == "empty"


def test_newest_come_first_and_only_so_many():
    prompts = [prompt(i) for i in range(5)]
    groups = [
        group(p, rollout("42", True), rollout("41", False), step=i) for i, p in enumerate(prompts)
    ]
    pairs = mine(groups, prompts, max_pairs=3)
    assert [pair.origin["rejected_step"] for pair in pairs] == [4, 3, 2]
    recent = mine(groups, prompts, last_steps=2)
    assert [pair.origin["rejected_step"] for pair in recent] == [4, 3]


def test_one_prompt_gives_its_newest_failures_and_corner_cases_in_turn():
    p = prompt()
    old = group(p, rollout("42", True), rollout("39", False), step=1)
    new = group(
        p,
        rollout("42", True),
        rollout("40", False),
        rollout("41", False),
        rollout("it is 42", False),
        step=2,
    )
    assert [x.rejected for x in mine([old, new], [p])] == ["it is 42"]
    three = mine([old, new], [p], max_pairs_per_prompt=3)
    assert {x.rejected for x in three} == {"it is 42", "40", "41"}
    assert pair_summary(three) == {"wrong_answer": 2, "format": 1}
    only = mine([old, new], [p], corner_cases=["truncation"])
    assert only == []


def test_the_same_rejected_text_is_not_used_twice():
    p = prompt()
    g = group(p, rollout("42", True), rollout("41", False), rollout("41", False))
    assert len(mine([g], [p], max_pairs_per_prompt=4)) == 1


rollouts = st.builds(
    rollout,
    st.sampled_from(["42", "41", "40", "", "so 42", "na " * 20]),
    st.sampled_from([True, False, None]),
    tokens=st.integers(0, 9),
    finish=st.sampled_from(["stop", "length"]),
)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 5), st.lists(rollouts, max_size=5)), max_size=12
    ),
    st.integers(0, 9),
    st.integers(1, 3),
    st.integers(1, 6),
    st.randoms(use_true_random=False),
)
def test_every_pair_is_allowed_and_order_of_reading_does_not_matter(
    raw, seed, each, most, shuffler
):
    prompts = [prompt(i) for i in range(4)]
    # One group per prompt and step, as RL writes them.
    unique = {(which, step): some for which, step, some in raw}
    groups = [group(prompts[w], *some, step=s) for (w, s), some in sorted(unique.items())]
    pairs = mine(groups, prompts, seed=seed, max_pairs=most, max_pairs_per_prompt=each)
    assert len(pairs) <= most
    lookup = {(g.prompt_id, g.step): g.rollouts for g in groups}
    seen = set()
    for pair in pairs:
        good = lookup[pair.prompt_id, pair.origin["chosen_step"]][pair.origin["chosen_index"]]
        bad = lookup[pair.prompt_id, pair.origin["rejected_step"]][pair.origin["rejected_index"]]
        assert (good.text, bad.text) == (pair.chosen, pair.rejected)
        assert good.outcome.passed is True
        assert good.finish_reason == "stop"
        assert bad.outcome.passed is False
        lengths = sorted(max(1, len(r.completion_ids)) for r in (good, bad))
        assert lengths[1] <= 2 * lengths[0]
        assert pair.chosen != pair.rejected
        seen.add((pair.prompt_id, pair.rejected))
    assert len(seen) == len(pairs)
    for p in prompts:
        assert sum(pair.prompt_id == p.prompt_id for pair in pairs) <= each
    shuffled = groups[:]
    shuffler.shuffle(shuffled)
    again = mine(shuffled, prompts, seed=seed, max_pairs=most, max_pairs_per_prompt=each)
    assert again == pairs


def test_an_unknown_prompt_is_refused():
    with pytest.raises(ValueError, match="not in the data"):
        mine([group(prompt(1), rollout("42", True))], [prompt(2)])


def test_nothing_comes_of_nothing():
    assert mine([], []) == []
    assert pair_summary([]) == {}
