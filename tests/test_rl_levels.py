"""Endless sources: levels that follow the policy, prompts that come again, what is held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.data import LEVELLED, levelled_families, load_data, question_hashes
from posttrain.recipe.rows import DataSource, Levels
from posttrain.recipe.schema import Recipe
from posttrain.records import Outcome, Prompt, Rollout, RolloutGroup
from posttrain.rewards import verify
from posttrain.rewards.reasoning_gym import family_keys, level_config, make_entries
from posttrain.rl.levels import LevelController, LevelledPrompts

SOURCE: dict[str, Any] = {
    "reasoning_gym": {"chain_sum": {"min_terms": 2, "max_terms": 2}},
    "size": 12,
    "capability": "sums",
    "levels": {"start": 1, "max": 2, "min_rollouts": 8},
}


def families() -> list[Any]:
    return levelled_families(DataSource.model_validate(SOURCE), "rl.data[0]")


def bundle(**source: Any) -> Any:
    recipe = Recipe.model_validate(
        {
            "model": {"base": "m"},
            "rl": {"data": [{**SOURCE, **source}]},
            "eval": {"heldout_size": 9},
        }
    )
    return load_data(recipe, find=Path, seed=3)


def group(prompt: Prompt, passed: bool, num: int = 4) -> RolloutGroup:
    rollout = Rollout(
        completion_ids=[1],
        logprobs=[-1.0],
        text="x",
        finish_reason="stop",
        outcome=Outcome(passed=passed, score=float(passed), why=""),
    )
    return RolloutGroup(
        prompt_id=prompt.prompt_id, step=0, policy_version=0, rollouts=(rollout,) * num
    )


def source_of(prompts: list[Prompt], held: frozenset[str] = frozenset()) -> LevelledPrompts:
    return LevelledPrompts(families(), prompts, held_out=held, seed=5)


def test_the_first_prompts_are_of_the_start_level_and_every_level_is_held_out() -> None:
    found = bundle()
    assert {p.level for p in found.prompts} == {"1"}
    assert len(found.prompts) == 12
    held = found.suites["heldout"]
    assert sorted(p.level for p in held) == [level for level in "012" for _ in range(3)]
    for prompt in found.prompts:
        assert prompt.capability == "sums"
        assert prompt.meta["config"] == {
            "min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2
        }  # fmt: skip
        assert verify(prompt, prompt.reference).passed


def test_two_sources_of_one_family_have_a_level_each() -> None:
    (one,) = levelled_families(DataSource.model_validate(SOURCE), "rl.data[0]")
    (other,) = levelled_families(DataSource.model_validate(SOURCE), "rl.data[1]")
    both = LevelledPrompts([one, other], [], held_out=frozenset(), seed=0)
    assert set(both.metrics()) == {f"levels/{one.label}", f"levels/{other.label}"}


def test_a_mastered_level_brings_harder_prompts_and_a_dead_one_easier_ones() -> None:
    start = bundle().prompts
    source = source_of(start)
    by_id = {p.prompt_id: p for p in start}
    assert source.new(12) == []
    source.observe([group(p, True) for p in start[:2]], by_id)
    harder = source.new(12)
    assert {p.level for p in harder} == {"2"}
    assert len(harder) == 12
    assert {p.meta["config"]["max_digits"] for p in harder} == {3}
    by_id |= {p.prompt_id: p for p in harder}
    source.observe([group(p, False) for p in harder[:2]], by_id)
    assert source.metrics() == {"levels/chain_sum": 1.0}
    # Ten of the start level are untried yet.
    assert source.new(10) == []
    more = source.new(11)
    assert {p.level for p in more} == {"1"}
    assert not {p.prompt_id for p in more} & set(by_id)


def test_nothing_that_is_held_out_is_made() -> None:
    found = bundle()
    everything = source_of([]).new(40)
    held = frozenset(h for p in everything[:5] for h in question_hashes(p))
    made = source_of([], held).new(40)
    assert len(made) == 40
    assert not held & {h for p in made for h in question_hashes(p)}
    suite = frozenset(h for p in found.suites["heldout"] for h in question_hashes(p))
    assert not suite & {h for p in source_of([], suite).new(200) for h in question_hashes(p)}


def test_a_saved_source_goes_on_with_the_same_prompts() -> None:
    start = bundle().prompts
    one = source_of(start)
    by_id = {p.prompt_id: p for p in start}
    one.observe([group(p, True) for p in start[:2]], by_id)
    first = one.new(12)
    by_id |= {p.prompt_id: p for p in first}
    state = one.state_dict()
    one.observe([group(p, p.reference < "5") for p in first], by_id)
    other = source_of(start)
    other.note(first)
    other.load_state_dict(state)
    other.observe([group(p, p.reference < "5") for p in first], by_id)
    assert other.state_dict() == one.state_dict()
    assert other.new(20) == one.new(20) != []


def test_a_level_without_end_may_end() -> None:
    source = DataSource.model_validate(
        {
            "reasoning_gym": {"chain_sum": {"min_terms": 2, "max_terms": 2}},
            "size": 1000,
            "levels": {"max": 0},
        }
    )
    made = LevelledPrompts(
        levelled_families(source, "rl.data[0]"), [], held_out=frozenset(), seed=0
    )
    few = made.new(1)
    assert 100 < len(few) < 300
    assert made.new(1000) == []


def test_the_highest_level_by_default_is_one_that_the_family_has() -> None:
    asked = {"reasoning_gym": ["gcd", "chain_sum"], "size": 5, "levels": {}}
    gcd, chain_sum = levelled_families(DataSource.model_validate(asked), "rl.data[0]")
    assert (gcd.all_levels, chain_sum.all_levels) == (range(4), range(5))


@pytest.mark.slow
def test_every_familys_second_level_can_be_made() -> None:
    """But for two whose own curriculum gives what the family refuses."""
    refused: list[str] = []
    for family in family_keys():
        try:
            config = level_config(family, 1)
        except ValueError:
            assert family in ("gsm_symbolic", "acre", "list_functions")
            continue
        try:
            made = make_entries(family, config, seed=0, size=1)
        except ValueError:
            refused.append(family)
        else:
            assert "question" in made[0] or "error" in made[0]
    assert refused == ["modulo_grid"]


def test_prompts_say_which_family_made_them() -> None:
    assert {p.meta[LEVELLED] for p in bundle().prompts} == {"rl.data[0] reasoning_gym:chain_sum"}


def test_levels_rise_when_mastered_and_fall_when_dead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("posttrain.rl.levels._MEMORY", 16.0)
    levels = LevelController(Levels(start=1, min_rollouts=16), highest=2)
    moves = []
    for num_passed in [8, 8, 8, 8, 8, 8, 0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4]:
        levels.observe(level=levels.level, num_passed=num_passed, num_decided=8)
        levels.observe(level=0 if levels.level else 1, num_passed=8, num_decided=8)
        moves.append(levels.move())
    # Up to 2 and no further; down over 1 to 0 and no further; what is medium stays.
    assert moves[:4] == [0, 1, 0, 0]
    assert moves.count(-1) == 2
    assert levels.level == 0
    again = LevelController(Levels(start=2, min_rollouts=16), highest=2)
    again.load_state_dict(levels.state_dict())
    assert again.state_dict() == levels.state_dict()
