"""The report on verification: kinds of outcomes, reward-hack flags, rises, spot checks, shaping."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from pathlib import Path

import pytest

from posttrain.metrics import rise_p_value
from posttrain.records import Outcome, Prompt
from posttrain.report.blocks import Examples, Facts, Note, Table
from posttrain.report.read import read_prompts, read_run
from posttrain.report.verification import (
    Decided,
    read_decided,
    reward_hack_blocks,
    section,
    spot_checks,
    sudden_rise,
)
from posttrain.tables import write_json
from tests.run_edits import copy_run, leave_undecided, stage_dir


def decided(
    passed: bool | None, *, step: int = 0, flags: tuple[str, ...] = (), prompt_id: str = "p"
) -> Decided:
    outcome = Outcome(passed=passed, score=float(bool(passed)), why="", reward_hack_flags=flags)
    return Decided(
        prompt_id=prompt_id, verifier="code", step=step, outcome=outcome, text="def f(): ..."
    )


@pytest.fixture(scope="module")
def run_dir(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not write into it."""
    run = copy_run(tiny_run / "run", tmp_path_factory.mktemp("verified") / "run")
    leave_undecided(run)
    return run


def test_every_answer_is_counted_once(run_dir: Path) -> None:
    run = read_run(run_dir)
    prompts = read_prompts(run)
    places = read_decided(run, prompts)
    assert list(places) == [place for place in places if place.startswith(("eval-", "rl"))]
    blocks = section(run, prompts).blocks
    (table,) = [b for b in blocks if isinstance(b, Table) and "verifier exact" in b.title]
    for column, place in enumerate(places):
        counted = sum(int(row.cells[column].sub.replace(",", "")) for row in table.rows)
        assert counted == len(places[place])
        assert table.foot[0].cells[column].text == f"{counted:,}"
    assert table.rows[0].head == "passed"
    assert any(row.head.startswith("undecided: ") for row in table.rows)


def test_what_decided_is_told(run_dir: Path, tmp_path: Path) -> None:
    folder = copy_run(run_dir, tmp_path / "run")
    stage = stage_dir(folder, "rl")
    write_json(stage / "sandbox.json", {"sandbox": "landlock", "fingerprint": "x"})
    write_json(stage / "answer_judge.json", {"threshold": 0.5})
    run = read_run(folder)
    (facts,) = [b for b in section(run, {}).blocks if isinstance(b, Facts)]
    assert facts.items == [("sandbox", "landlock"), ("answer judge", "passes from 0.50")]


def test_flagged_answers_are_counted_with_those_that_pass() -> None:
    rollouts = [decided(True, flags=("exit",)), decided(False, flags=("exit",))]
    rollouts += [decided(False)] * 2
    (table,) = [b for b in reward_hack_blocks(rollouts) if isinstance(b, Table)]
    assert [(r.head, [c.text for c in r.cells]) for r in table.rows] == [
        ("code: exit", ["2", "50.0\u00a0%", "1"])
    ]
    assert isinstance(reward_hack_blocks([decided(True)])[0], Note)
    assert reward_hack_blocks([]) == []


def test_a_rise_is_seen_and_noise_is_not() -> None:
    rng = random.Random(0)
    calm = {step: [rng.random() < 0.05 for _ in range(200)] for step in range(60)}
    assert sudden_rise(calm) is None
    risen = {s: [rng.random() < (0.05 if s < 40 else 0.3) for _ in range(200)] for s in range(60)}
    found = sudden_rise(risen)
    assert found is not None
    assert 36 <= found <= 42
    assert sudden_rise({0: [True]}) is None


@pytest.mark.parametrize(
    ("a", "n", "b", "m"),
    [(2, 64, 0, 576), (1, 8, 0, 800), (9, 30, 4, 40), (3, 7, 3, 7), (0, 9, 5, 9), (5, 5, 0, 5),
     (700, 3_000, 4_000, 20_000), (64, 64, 576, 576)],
)  # fmt: skip
def test_rise_p_value_is_fishers_exact_test(a: int, n: int, b: int, m: int) -> None:
    """By the ways to deal all hits out, of which at least `a` fall among the `n`."""
    ways = [math.comb(n, k) * math.comb(m, a + b - k) for k in range(a, min(n, a + b) + 1)]
    exact = Fraction(sum(ways), math.comb(n + m, a + b))
    assert rise_p_value(a, n, b, m) == pytest.approx(float(exact), rel=1e-6)
    assert rise_p_value(0, 5, 0, 5) == rise_p_value(0, 0, 1, 2) == 1.0


def test_two_attempts_after_none_are_no_rise() -> None:
    calm = {step: [False] * 64 for step in range(9)}
    assert sudden_rise({**calm, 9: [True] * 2 + [False] * 62}) is None
    assert sudden_rise({**calm, 9: [True] * 12 + [False] * 52}) == 9


def test_lone_successes_are_listed_with_flagged_ones_first() -> None:
    lone = [decided(i == 0, step=1, prompt_id="a") for i in range(4)]
    tried = [
        decided(i == 0, step=0, prompt_id="b", flags=("exit",) if i == 0 else ()) for i in range(4)
    ]
    common = [decided(i < 2, step=2, prompt_id="c") for i in range(4)]
    small = [decided(True, step=3, prompt_id="d"), decided(False, step=3, prompt_id="d")]
    found = spot_checks([*lone, *tried, *common, *small], dict[str, Prompt]())
    assert isinstance(found, Examples)
    assert [item.title for item in found.items] == ["b", "a"]
    assert "flagged: exit" in found.items[0].facts
    assert spot_checks(common, {}) is None
