"""The bed of real learners: its tasks, pools and ledger; one arm for two steps."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.curriculum_real.pools import (
    REAL_POOLS,
    RealPool,
    RealPoolSpec,
    draw_held_out,
    draw_real_pool,
    kind_of,
    signal_chance,
)
from benchmarks.curriculum_real.report import real_result
from benchmarks.curriculum_real.run import Metered, held_out_pass_rate, train_arm
from benchmarks.curriculum_real.start import (
    exam,
    model_spec,
    pass_rates,
    starting_policy,
    write_nano_llama4,
)
from benchmarks.curriculum_real.suite import HIGHER_RATE, finished_rows, real_arms, row_key
from benchmarks.curriculum_real.tasks import (
    CAPABILITIES,
    LEVELS,
    MAX_ANSWER_TOKENS,
    draw_prompt,
    draw_sample,
)
from benchmarks.curriculum_rows import SHUFFLED, Row, append_row
from posttrain.engines import SamplingRequest, make_engine
from posttrain.errors import HealthStop, RecipeError
from posttrain.models import PolicyPath, count_parameters, load_policy, load_tokenizer, prompt_ids
from posttrain.recipe.models import EngineSpec
from posttrain.records import Prompt
from posttrain.rewards import verify
from posttrain.rl.likelihood import answer_ids


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nano_llama4(tmp_path_factory.mktemp("models") / "nano", seed=0)


def test_the_nano_model_is_a_mixture_of_experts_of_about_a_million_parameters(nano: Path) -> None:
    assert 0.8e6 < count_parameters(nano) < 1.2e6
    model = load_policy(PolicyPath(base=nano), model_spec(nano), trainable=False)
    assert sum("router" in name for name, _ in model.named_parameters()) == 2


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_question_and_answer_is_one_token_a_character(nano: Path, capability: str) -> None:
    tokenizer = load_tokenizer(nano)
    rng = np.random.default_rng(0)
    for level in LEVELS:
        prompt = draw_prompt(capability, level, rng)
        question = prompt.messages[0]["content"]
        asked = prompt_ids(tokenizer, prompt.messages)
        assert len(asked) == level + 5  # the task's mark, begin, two roles and an end of turn
        assert tokenizer.unk_token_id not in asked
        answer = answer_ids(tokenizer, prompt.messages, prompt.reference)
        assert tokenizer.decode(answer, skip_special_tokens=True) == prompt.reference
        assert answer[-1] == tokenizer.eos_token_id
        assert len(answer) == level + 1 <= MAX_ANSWER_TOKENS
        assert len(question) == level + 1


def test_the_verifier_takes_the_answer_and_no_other_text_of_letters() -> None:
    # What makes the probability of the reference the pass rate.
    rng = np.random.default_rng(1)
    for capability in CAPABILITIES:
        prompt = draw_prompt(capability, 3, rng)
        texts = ("".join(letters) for letters in itertools.product("abcdefghij", repeat=3))
        assert [t for t in texts if verify(prompt, t).passed] == [prompt.reference]
        assert not verify(prompt, prompt.reference + "a").passed
        assert not verify(prompt, prompt.reference[:-1]).passed


def rate_by_level(prompts: list[Prompt]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A policy that solves up to three letters, nothing from seven on, and is torn in between."""
    rates = {2: 1.0, 3: 0.995, 4: 0.8, 5: 0.5, 6: 0.2}
    return np.array([rates.get(prompt.meta["level"], 1e-4) for prompt in prompts])


def test_a_pool_has_the_share_of_alive_prompts_that_it_declares() -> None:
    spec = RealPoolSpec(
        alive=0.25, num_prompts=300, num_steps=1, learning_rate=1e-4, higher_rate=2e-4
    )
    pool = draw_real_pool(spec, lambda new: rate_by_level(list(new)), seed=3)
    kinds = [kind_of(rate) for rate in pool.rates_P]
    assert len(pool.prompts) == 300
    assert kinds.count("alive") == 75
    assert abs(kinds.count("hard") - 0.9 * 225) <= len(CAPABILITIES)
    held = {prompt.prompt_id for prompt in pool.held_out}
    assert not held & {prompt.prompt_id for prompt in pool.prompts}
    assert len({prompt.prompt_id for prompt in pool.prompts}) == 300
    assert pool.alive == pytest.approx(signal_chance(rate_by_level(pool.prompts)).mean())


def test_tags_correlate_with_the_chance_of_failing_as_declared_and_not_when_shuffled() -> None:
    spec = RealPoolSpec(
        alive=0.5, num_prompts=1500, num_steps=1, learning_rate=1e-4, higher_rate=2e-4
    )
    for shuffled in (False, True):
        pool = draw_real_pool(
            replace(spec, shuffled_tags=shuffled), lambda new: rate_by_level(list(new)), seed=0
        )
        p = np.clip(pool.rates_P, np.exp(-9), 1 - np.exp(-9))
        tags = [pool.tags[prompt.prompt_id] for prompt in pool.prompts]
        found = np.corrcoef(tags, np.log((1 - p) / p))[0, 1]
        assert found == pytest.approx(0.0 if shuffled else 0.7, abs=0.08)


def test_a_policy_that_leaves_too_few_prompts_of_a_kind_is_told_so() -> None:
    spec = RealPoolSpec(
        alive=0.5, num_prompts=30, num_steps=1, learning_rate=1e-4, higher_rate=2e-4
    )
    with pytest.raises(HealthStop, match="alive prompts of reverse"):
        draw_real_pool(spec, lambda new: np.zeros(len(new)), seed=0)


def test_held_out_prompts_are_even_over_capabilities_and_levels() -> None:
    held = draw_held_out(0)
    cells = [(prompt.capability, prompt.meta["level"]) for prompt in held]
    assert {cells.count(cell) for cell in set(cells)} == {12}
    assert len(set(cells)) == len(CAPABILITIES) * len(LEVELS)


def test_keys_tell_pools_arms_and_seeds_apart() -> None:
    keys = {
        row_key(pool, arm, seed)
        for pool in REAL_POOLS
        for arm in ("uniform", "dapo", "adaptive")
        for seed in (0, 1)
    }
    assert len(keys) == len(REAL_POOLS) * 3 * 2
    assert SHUFFLED in real_arms()


def made_row(arm: str, seed: int, tokens: float | None) -> Row:
    spent = dict.fromkeys(("tokens", "rollouts", "steps", "seconds"), tokens or 150.0)
    at = {**spent, "scored_tokens": 0.0}
    return {
        "pool": "wide",
        "arm": arm,
        "seed": seed,
        "alive": 0.4,
        "start": 0.3,
        "final": 0.5,
        "spent": at,
        "reached": dict.fromkeys(("0.5", "0.75", "0.9"), at if tokens else None),
        "purposes": {"trained": 50, "discarded": 50},
    }


def test_the_table_pairs_seeds_and_marks_bounds() -> None:
    rows = [made_row("uniform", seed, 100.0) for seed in (0, 1, 2)]
    rows += [made_row("adaptive", 0, 50.0), made_row("adaptive", 1, 50.0)]
    rows += [made_row("mopps", seed, None) for seed in (0, 1, 2)]
    rows += [made_row("adaptive, higher rate", 0, 25.0), made_row("dapo, higher rate", 0, 75.0)]
    result = real_result(rows)
    cells = {row[1]: row for row in result.rows}
    assert cells["adaptive"][2:4] == ["2", "2.00"]
    assert cells["mopps"][2:4] == ["3", "<= 0.67"]
    assert cells["mopps"][-1].startswith(">= 3.00")
    assert cells["dapo, higher rate"][-1].startswith("3.00"), "against adaptive at that rate"
    figures = result.figures["pools"]["wide"]["arms"]
    assert figures["adaptive"]["tokens 0.9"]["seeds"] == 2
    assert figures["mopps"]["adaptive over it"]["ratio"] == pytest.approx(3.0)


def test_finished_runs_are_told_without_running_others(tmp_path: Path) -> None:
    ledger = tmp_path / "rows.jsonl"
    kept = [("uniform", 0), ("adaptive", 0), ("adaptive", 1)]
    for arm, seed in kept:
        append_row(ledger, made_row(arm, seed, 50.0) | {"key": row_key("wide", arm, seed)})
    append_row(ledger, made_row("mopps", 0, 50.0) | {"key": "of other code"})
    arms = list(real_arms())
    rows = finished_rows(ledger, seeds=range(3), pools=list(REAL_POOLS), arms=arms)
    assert [(row["arm"], row["seed"]) for row in rows] == kept[:2], "seed 1 has no uniform run"
    with pytest.raises(RecipeError, match="no finished run"):
        finished_rows(ledger, seeds=[7], pools=["wide"], arms=arms)


def test_the_higher_rate_is_higher_and_keeps_uniforms_target() -> None:
    for spec in REAL_POOLS.values():
        assert spec.higher_rate > spec.learning_rate
    faster = [arm for arm in real_arms() if arm.endswith(HIGHER_RATE)]
    assert {"uniform" + HIGHER_RATE, "adaptive" + HIGHER_RATE} <= set(faster)
    assert all(real_arms()[arm] == real_arms()[arm.removesuffix(HIGHER_RATE)] for arm in faster)


@pytest.mark.slow
def test_one_arm_trains_for_two_steps_on_what_sft_left(tmp_path: Path) -> None:
    policy = starting_policy(tmp_path, seed=0, num_steps=60)
    assert starting_policy(tmp_path, seed=0, num_steps=60) == policy
    model = load_policy(policy, model_spec(policy.base), trainable=False).eval()
    tokenizer = load_tokenizer(policy.base)
    rng = np.random.default_rng(0)
    drawn = [draw_prompt(c, k, rng) for c in CAPABILITIES for k in (2, 3) for _ in range(50)]
    prompts = list({prompt.prompt_id: prompt for prompt in drawn}.values())
    asked = exam(tokenizer, prompts)
    rates = pass_rates(model, asked)
    before = held_out_pass_rate(model, asked, [p.capability for p in prompts])
    assert before > 0.05, "SFT has taught a part"

    engine = Metered(make_engine(EngineSpec(kind="transformers"), policy, dtype="float32", seed=0))
    request = SamplingRequest(num_generations=16, max_tokens=MAX_ANSWER_TOKENS)
    sampled = engine.generate([prompt_ids(tokenizer, p.messages) for p in prompts], request)
    assert engine.num_rollouts == 16 * len(prompts)
    texts_P_G = [
        [str(tokenizer.decode(c.token_ids, skip_special_tokens=True)) for c in of_one]
        for of_one in sampled
    ]
    passed = [
        float(verify(prompt, text).passed is True)
        for prompt, texts in zip(prompts, texts_P_G, strict=True)
        for text in texts
    ]
    error = np.sqrt((rates * (1 - rates)).sum() / 16) / len(prompts)
    assert np.mean(passed) == pytest.approx(rates.mean(), abs=4 * error + 0.005)

    pool = RealPool(
        prompts=prompts,
        rates_P=rates,
        tags={p.prompt_id: 1 - r for p, r in zip(prompts, rates.tolist(), strict=True)},
        held_out=prompts[::5],
    )
    trace = train_arm(
        real_arms()["adaptive"], pool, policy, seed=0, max_steps=2, learning_rate=1e-4, eval_every=1
    )
    assert [point["steps"] for point in trace.points] == [0, 1, 2]
    last = trace.points[-1]
    assert last["tokens"] == sum(trace.purposes.values()) > 0
    assert last["rollouts"] >= 2 * 32 * 4
    assert last["scored_tokens"] > 0, "the probe is charged"
    assert last["held_out"] != trace.points[0]["held_out"], "the policy moved"


def test_samples_hold_their_answer_as_the_last_turn() -> None:
    sample = draw_sample("sort", 4, np.random.default_rng(0))
    question, answer = sample.messages[0]["content"], sample.messages[-1]["content"]
    assert answer == "".join(sorted(question[1:]))
