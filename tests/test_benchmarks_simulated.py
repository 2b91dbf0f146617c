"""The simulated bed: what its learner does, what is charged, ratios, and going on after a stop."""

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import curriculum_rows, curriculum_size
from benchmarks.curriculum_rows import crossing
from benchmarks.curriculum_simulated import suite
from benchmarks.curriculum_simulated.learner import Group, Learner, Rates
from benchmarks.curriculum_simulated.pools import POOLS, PoolSpec, draw_pool
from benchmarks.curriculum_simulated.report import describe_pool, simulated_result
from benchmarks.curriculum_simulated.simulation import BATCH, GROUP_SIZE, simulate
from benchmarks.curriculum_simulated.suite import ORACLE, arms, run_suite
from benchmarks.curriculum_tables import paired_ratio

SMALL = PoolSpec(alive=0.3, num_prompts=512, num_steps=10)


def learner(**rates):
    return Learner(
        ability=np.zeros(2),
        skill_P=np.array([0, 1, 0]),
        difficulty_P=np.array([0.0, 0.0, 1.0]),
        rates=Rates(noise=0.0, **rates),
        rng=np.random.default_rng(0),
    )


def rolled(prompt, outcomes, rewards=None):
    return Group(
        prompt=prompt,
        outcomes=np.array(outcomes, dtype=bool),
        rewards=np.array(outcomes if rewards is None else rewards, dtype=bool),
    )


def test_a_step_is_the_policy_gradient():
    """n q (1 - q) of one group: 4 * 1/4 at learning rate 1 over a batch of one group of 4."""
    one = learner(learning=1.0, transfer=0.25, forgetting=0.0, memory=0.5)
    one.learn([rolled(0, [1, 1, 0, 0])], batch=1, group_size=4)
    assert one.ability.tolist() == [0.25, 0.0625]
    assert one.pass_rates()[0] == pytest.approx(1 / (1 + math.exp(-0.25 - 0.5 * 0.25)))


@pytest.mark.parametrize(
    ("outcomes", "rewards"),
    [([1, 1, 1, 1], None), ([0, 0, 0, 0], None), ([0, 0, 0, 0], [1, 0, 0, 1])],
    ids=["solved", "dead", "dead, flipped rewards"],
)
def test_groups_without_signal_teach_nothing(outcomes, rewards):
    one = learner()
    one.learn([rolled(0, outcomes, rewards)], batch=1, group_size=4)
    assert one.ability.tolist() == [0.0, 0.0]


def test_wrong_rewards_weaken_and_repetition_tires():
    right, wrong, tired = learner(), learner(), learner()
    right.learn([rolled(0, [1, 1, 0, 0])], batch=1, group_size=4)
    wrong.learn([rolled(0, [1, 1, 0, 0], [1, 0, 0, 0])], batch=1, group_size=4)
    assert 0 < wrong.ability[0] < right.ability[0]
    gains = []
    for _ in range(9):
        before = tired.ability[0]
        tired.learn([rolled(0, [1, 1, 0, 0])], batch=1, group_size=4)
        gains.append(tired.ability[0] - before)
    assert gains[4] / gains[0] == pytest.approx(2 / 3)
    assert gains[8] / gains[0] == pytest.approx(1 / 2)


def test_pools_are_what_they_are_called():
    for name, expected in [
        ("curated", 0.8),
        ("wide", 0.37),
        ("dead 85 %", 0.13),
        ("dead 95 %", 0.05),
    ]:
        spec = POOLS[f"{name}, 1 epoch"]
        assert describe_pool(f"{name}, 1 epoch")["alive"] == pytest.approx(expected, abs=0.03)
        # Uniform does not get through it.
        assert spec.num_prompts > spec.num_steps * BATCH
    for name, r in [("dead 95 %, 1 epoch", 0.7), ("dead 95 %, 1 epoch, tags r = 0.9", 0.9)]:
        drawn = draw_pool(POOLS[name], 3)
        tags = np.array([drawn.tags[p.prompt_id] for p in drawn.prompts])
        assert np.corrcoef(tags, drawn.difficulty_P)[0, 1] == pytest.approx(r, abs=0.02)
    shuffled = draw_pool(replace(POOLS["wide, 1 epoch"], shuffled_tags=True), 3)
    tags = np.array([shuffled.tags[p.prompt_id] for p in shuffled.prompts])
    assert abs(np.corrcoef(tags, shuffled.difficulty_P)[0, 1]) < 0.05


@pytest.mark.parametrize("arm", arms())
def test_every_arm_runs_and_all_it_generates_is_charged(arm):
    trace = simulate(arms()[arm], SMALL, seed=1)
    last = trace.points[-1]
    assert last["steps"] == SMALL.num_steps
    assert sum(trace.purposes.values()) == last["tokens"]
    if arm in ("uniform", "scalerl", "mopps", "difficulty_pools"):
        assert last["rollouts"] == SMALL.num_steps * BATCH * GROUP_SIZE
    if arm == "variance":
        assert last["rollouts"] == 4 * SMALL.num_steps * BATCH * GROUP_SIZE
    assert (last["scored_tokens"] > 0) == (arm.startswith("adaptive") and "no_probe" not in arm)
    again = simulate(arms()[arm], SMALL, seed=1)
    assert again.points == trace.points


def test_crossing_waits_for_two_in_a_row_and_interpolates():
    values = [0.0, 0.5, 0.2, 0.4, 0.6, 0.7]
    points = [
        {"held_out": v, **dict.fromkeys(curriculum_rows.COSTS, 10.0 * i)}
        for i, v in enumerate(values)
    ]
    reached = crossing(points, 0.5)
    assert reached is not None
    assert reached["tokens"] == pytest.approx(35.0)
    assert crossing(points, 0.8) is None
    assert crossing(points, 0.65) is None, "the last evaluation alone is not two"
    assert crossing(points, 0.0) is None, "nothing was gained on the way there"


def test_an_interval_of_few_seeds_holds_what_it_says():
    rng = np.random.default_rng(0)
    trials = [
        paired_ratio(np.exp(rng.normal(0.3, 0.2, 4)).tolist(), [1.0] * 4) for _ in range(2000)
    ]
    held = np.mean([ratio.low <= math.exp(0.3) <= ratio.high for ratio in trials])
    assert held == pytest.approx(0.95, abs=0.02)


def test_paired_ratios():
    ratio = paired_ratio([8.0, 2.0, 4.0], [4.0, 1.0, 2.0])
    assert (ratio.mean, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))
    ratio = paired_ratio([1.0, 1.0, 1.0, 1.0], [0.5, 2.0, 1.0, 1.0], num_bounds=1)
    assert ratio.mean == pytest.approx(1.0)
    assert ratio.low < 1.0 < ratio.high
    assert ratio.text() == "<= 1.00"
    assert paired_ratio([6.0], [4.0], num_open=1).text() == ">= 1.50"
    assert paired_ratio([6.0], [4.0], num_bounds=1, num_open=1).text() == "?1.50"
    ratio = paired_ratio([8.0], [4.0])
    assert ratio.text() == "2.00"
    assert ratio.interval() == "one seed"
    assert not ratio.low > 1.0, "one seed is no significance"
    assert ratio.values()["low"] is None


def test_the_suite_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "POOLS", {"wide, 1 epoch": SMALL})
    ran = Counter()

    def run_here(jobs, uniform, num_processes):
        for pool, arm, seed in jobs:
            ran[arm, seed] += 1
            yield suite.run_arm(pool, arm, seed, uniform.get((pool, seed)))

    monkeypatch.setattr(suite, "_run", run_here)
    some = ["uniform", "adaptive", "adaptive_no_tags", "mopps", ORACLE, curriculum_rows.SHUFFLED]
    chosen = {arm: spec for arm, spec in arms().items() if arm in some}
    monkeypatch.setattr(suite, "arms", lambda: chosen)
    ledger = tmp_path / "rows.jsonl"
    rows = run_suite(ledger, seeds=[0, 1], pools=["wide, 1 epoch"], num_processes=1)
    assert sorted(ran.values()) == [1] * 12
    # A crash in the middle of a line costs that run only.
    text = ledger.read_text()
    ledger.write_text(text[: text.rindex('"arm"')])
    again = run_suite(ledger, seeds=[0, 1], pools=["wide, 1 epoch"], num_processes=1)
    assert sorted(ran.values()) == [1] * 11 + [2]

    def essence(row):
        return json.dumps({k: v for k, v in row.items() if k != "wall_seconds"})

    assert [essence(row) for row in again] == [essence(row) for row in rows]
    result = simulated_result(rows)
    assert {row[1] for row in result.rows} == set(some) - {"uniform"}
    figures = result.figures["pools"]["wide, 1 epoch"]["arms"]
    assert figures[ORACLE]["tokens 0.9"]["ratio"] > 1.5
    # A changed curriculum is another run.
    assert chosen["mopps"] is not None
    chosen["mopps"] = chosen["mopps"].model_copy(update={"discount": 0.9})
    run_suite(ledger, seeds=[0, 1], pools=["wide, 1 epoch"], num_processes=1)
    assert ran["mopps", 0] == 2


def test_what_a_large_pool_costs_is_measured_in_use(monkeypatch):
    monkeypatch.setattr(curriculum_size, "NUM_STEPS_BEFORE", 2)
    result = curriculum_size.bench_curriculum_size(num_prompts=3000, num_rounds=2)
    assert [row[0] for row in result.rows] == ["`uniform`", "`mopps`", "`adaptive`"]
    for figures in result.figures["arms"].values():
        assert all(len(seconds) == 2 for seconds in figures["seconds"].values())
        assert all(min(seconds) > 0.0 for seconds in figures["seconds"].values())
        # Every prompt's id is in both.
        assert min(figures["file_bytes"], figures["memory_bytes"]) > 3000 * 16
