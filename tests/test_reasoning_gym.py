"""Every reasoning-gym family: our outcome against the family's own scorer, called directly."""

from __future__ import annotations

import json
from typing import Any

import pytest

from posttrain.recipe.families import families
from posttrain.records import Prompt
from posttrain.rewards import reasoning_gym as gym
from posttrain.rewards import verify
from posttrain.rewards.answers import tidy
from posttrain.rewards.places import final_answer
from posttrain.rewards.reasoning_gym import decode, is_formula

FEW = ("chain_sum", "countdown", "knights_knaves", "base_conversion", "sokoban", "letter_counting")
# What our worker changes on purpose: these scorers run what a model wrote.
LITERALS = {"string_insertion", "spiral_matrix", "number_sorting", "binary_matrix", "n_queens"}
FORMULAS = {
    "countdown", "puzzle24", "simple_integration", "intermediate_integration",
    "polynomial_multiplication",
}  # fmt: skip
# Upstream's own curricula fail here, whoever asks.
UNSOUND_LEVELS = {
    ("caesar_cipher", 3), ("jugs", 3), ("letter_jumble", 4), ("spell_backward", 4),
    ("rubiks_cube", 4), ("knight_swap", 0), ("puzzle24", 6),
}  # fmt: skip
FAMILIES = sorted(set(families()) - {"composite"})


def oracle(dataset: Any, entry: Any, text: str, family: str) -> float | None:
    """The family's score for what our verifier shows it: the text, and the answer in it.

    None where the scorer raises for every reading: then only our own rule speaks.
    """
    scores: list[float] = []
    for reading in dict.fromkeys([text.strip(), tidy(final_answer(text))]):
        if family in FORMULAS and not is_formula(reading):
            scores.append(0.0)
            continue
        try:
            scores.append(float(dataset.score_answer(reading, decode(entry))))
        except (Exception, SystemExit):
            continue
    return max(scores) if scores else None


def compare(family: str) -> int:
    """Compare on own, wrong and decorated answers; how many were compared."""
    import reasoning_gym

    # The worker's hash seed is fixed, ours is not: entries are made there, scored here.
    dataset = reasoning_gym.create_dataset(family, seed=11, size=1)
    compared = 0
    made = gym.make_entries(family, {}, seed=11, size=2)
    answers = [one["answer"] for one in made if one.get("answer")]
    for one in made:
        assert "error" not in one, one
        own = one["answer"] or ""
        prompt = Prompt.make(
            messages=[{"role": "user", "content": one["question"]}],
            reference=own,
            verifier="reasoning_gym",
            capability="c",
            meta={"family": family, "config": {}, "entry": json.loads(json.dumps(one["entry"]))},
        )
        texts = [own, f" {own}\n", f"<answer>{own}</answer>", f"So the work is done.\n#### {own}"]
        texts += [f"{own}1", "0", "surely not this", *(a for a in answers if a != own)]
        for text in texts:
            # Python in a literal family is ours to refuse; harmless texts are scored alike.
            if not text.strip():
                continue
            outcome = verify(prompt, text)
            expected = oracle(dataset, one["entry"], text, family)
            if expected is None:
                assert outcome.passed is not True, (family, text, outcome)
                continue
            assert outcome.passed is (expected >= 1.0 - 1e-9), (family, text, expected, outcome)
            assert outcome.score == pytest.approx(min(1.0, max(0.0, expected)), abs=1e-6)
            compared += 1
        if own:
            assert verify(prompt, own).passed is True, (family, own)
    return compared


@pytest.mark.parametrize("family", FEW)
def test_a_family_scores_as_its_own_scorer(family: str) -> None:
    assert compare(family) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(FEW)))
def test_every_family_scores_as_its_own_scorer(family: str) -> None:
    assert compare(family) >= 1


def test_the_families_here_are_those_of_the_package() -> None:
    assert set(FAMILIES) == set(gym.family_keys())
    assert len(FAMILIES) > 100


# ---- levels


def test_the_levels_of_a_family() -> None:
    attributes = gym.levels_of("gcd")
    assert all({"levels", "keys"} == set(attribute) for attribute in attributes.values())
    most = gym.num_levels("gcd") - 1
    first, last = gym.level_config("gcd", 0), gym.level_config("gcd", most)
    assert set(first) == {key for a in attributes.values() for key in a["keys"]}
    assert first["max_value"] < last["max_value"]
    assert gym.make_entries("gcd", last, seed=1, size=2)
    for level in (-1, most + 1, True):
        with pytest.raises(ValueError, match=f"has the levels 0 to {most}"):
            gym.level_config("gcd", level)


def test_levels_are_those_of_the_curriculum_called_directly() -> None:
    from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode
    from reasoning_gym.factory import create_curriculum

    for family in ("gcd", "countdown", "knights_knaves"):
        for level in range(gym.num_levels(family)):
            curriculum = create_curriculum(family)
            curriculum.set_global_level(level)
            config = curriculum.generate_configuration(
                context=DefaultCurriculumContext(mode=RangeAttributeMode.UPPER_BOUND)
            )
            for key, value in gym.level_config(family, level).items():
                assert value == json.loads(json.dumps(getattr(config, key))), (family, level, key)


@pytest.mark.parametrize("family", ["gsm_symbolic", "acre", "list_functions"])
def test_a_family_without_levels_says_so(family: str) -> None:
    with pytest.raises(ValueError, match=f"{family}.*no curriculum"):
        gym.level_config(family, 0)
    assert families()[family]["levels"] == 0


@pytest.mark.slow
def test_every_level_of_every_family_is_a_sound_configuration() -> None:
    without: set[str] = set()
    failed: set[tuple[str, int]] = set()
    for family in FAMILIES:
        try:
            count = gym.num_levels(family)
        except ValueError:
            without.add(family)
            continue
        assert families()[family]["levels"] == count, family
        known = set(gym.family_keys()[family])
        for level in range(count):
            try:
                config = gym.level_config(family, level)
            except ValueError:
                failed.add((family, level))
                continue
            assert set(config) <= known
            json.dumps(config)
    assert without == {"gsm_symbolic", "acre", "list_functions"}
    assert failed <= UNSOUND_LEVELS
