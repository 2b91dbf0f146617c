"""Measures against independent oracles: exact fractions, enumeration, scipy, closed forms."""

import itertools
import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from posttrain import metrics
from posttrain.records import Outcome, Prompt, Rollout, RolloutGroup


def ranks(values):
    """One more than the number of smaller values, and half of the equal ones."""
    return [
        1 + sum(other < v for other in values) + (sum(other == v for other in values) - 1) / 2
        for v in values
    ]


def group(prompt_id, passes, *, step=0, tokens=2):
    """A group from a list of True / False / None."""
    rollouts = tuple(
        Rollout(
            completion_ids=[1] * tokens,
            logprobs=[-0.5] * tokens,
            text=f"answer {p}",
            finish_reason="stop",
            outcome=Outcome(passed=p, score=float(bool(p)), why=""),
        )
        for p in passes
    )
    return RolloutGroup(prompt_id=prompt_id, step=step, policy_version=step, rollouts=rollouts)


def test_pass_at_k_equals_exact_fractions_on_a_grid():
    for n in range(1, 41):
        for c in range(n + 1):
            for k in range(1, n + 1):
                exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
                assert metrics.pass_at_k(n, c, k) == pytest.approx(float(exact), abs=1e-12)


def test_pass_at_k_equals_the_mean_over_every_subset():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
                share = sum(any(s) for s in subsets) / len(subsets)
                assert metrics.pass_at_k(n, c, k) == pytest.approx(share)


def test_pass_at_k_stays_finite_where_binomials_overflow():
    value = metrics.pass_at_k(100_000, 3, 5_000)
    exact = 1 - math.prod(Fraction(95_000 - i, 100_000 - i) for i in range(3))
    assert value == pytest.approx(float(exact), rel=1e-9)


def test_pass_at_k_is_nan_without_enough_samples_and_rejects_nonsense():
    assert math.isnan(metrics.pass_at_k(3, 1, 4))
    assert math.isnan(metrics.pass_at_k(0, 0, 1))
    for n, c, k in [(3, 4, 1), (3, -1, 1), (3, 1, 0)]:
        with pytest.raises(ValueError, match="num_correct"):
            metrics.pass_at_k(n, c, k)


def test_undecided_rollouts_are_missing_and_not_failed():
    groups = [group("a", [True, None, None]), group("b", [False, True]), group("c", [None, None])]
    assert metrics.pass_rates(groups) == {"a": 1.0, "b": 0.5}
    assert metrics.pass_rate_interval(groups).mean == 0.75
    assert metrics.mean_pass_at_k(groups, 2) == 1.0


def test_several_groups_of_one_prompt_are_one_cluster():
    groups = [group("a", [True, False]), group("a", [True, True], step=1)]
    assert metrics.pass_rates(groups) == {"a": 0.75}


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(200):
        groups = [group(str(i), (rng.random(4) < rng.beta(2, 2)).tolist()) for i in range(50)]
        interval = metrics.pass_rate_interval(groups, seed=trial, num_resamples=400)
        hits += interval.low <= 0.5 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_interval_agrees_with_scipys_bootstrap():
    rng = np.random.default_rng(3)
    groups = [group(str(i), (rng.random(8) < rng.random()).tolist()) for i in range(80)]
    rates = list(metrics.pass_rates(groups).values())
    oracle = scipy.stats.bootstrap(
        (rates,), np.mean, method="percentile", rng=1
    ).confidence_interval
    interval = metrics.pass_rate_interval(groups)
    assert interval.mean == pytest.approx(np.mean(rates))
    assert interval.low == pytest.approx(oracle.low, abs=0.01)
    assert interval.high == pytest.approx(oracle.high, abs=0.01)


def test_all_or_nothing_has_the_exact_binomial_bound():
    exact = scipy.stats.binomtest(0, 20).proportion_ci(method="exact")
    failed = metrics.pass_rate_interval([group(str(i), [False]) for i in range(20)])
    passed = metrics.pass_rate_interval([group(str(i), [True]) for i in range(20)])
    assert (failed.mean, failed.low, failed.high) == (0, 0, pytest.approx(exact.high))
    assert (passed.mean, passed.low, passed.high) == (1, pytest.approx(1 - exact.high), 1)


def test_intervals_are_the_same_for_the_same_seed_only():
    groups = [group(str(i), [i % 3 == 0, i % 2 == 0]) for i in range(30)]
    first, again = (metrics.pass_rate_interval(groups, seed=1, num_resamples=99) for _ in range(2))
    assert first == again
    assert first != metrics.pass_rate_interval(groups, seed=2, num_resamples=99)


def test_blocks_do_not_change_what_is_estimated(monkeypatch):
    groups = [group(str(i), [i % 3 == 0, i % 2 == 0]) for i in range(30)]
    whole = metrics.pass_rate_interval(groups)
    monkeypatch.setattr(metrics, "_BLOCK_CELLS", 100)
    assert metrics.pass_rate_interval(groups) == whole


def test_macro_average_weighs_capabilities_alike():
    few = [group("a", [True])] * 1
    many = [group(str(i), [False]) for i in range(99)]
    assert metrics.macro_pass_at_1({"few": few, "many": many}).mean == 0.5
    assert math.isnan(metrics.macro_pass_at_1({"few": few, "none": [group("x", [None])]}).mean)
    assert math.isnan(metrics.macro_pass_at_1({}).mean)


def test_pairing_removes_the_spread_between_prompts():
    before = {"m": [group(str(i), [j < i % 5 for j in range(5)]) for i in range(40)]}
    after = {"m": [group(str(i), [j < i % 5 + 1 for j in range(5)]) for i in range(40)]}
    difference = metrics.paired_difference(before, after)
    assert difference.mean == pytest.approx(0.2)
    # All changed alike; yet of prompts like these, how many could change otherwise?
    unseen = scipy.stats.binomtest(0, 40).proportion_ci(method="exact").high
    assert difference.low == pytest.approx(0.2 - unseen * 1.2)
    assert difference.high == pytest.approx(0.2 + unseen * 0.8)
    assert difference.excludes_zero
    swapped = metrics.paired_difference(after, before)
    assert swapped.mean == pytest.approx(-0.2)
    assert not metrics.paired_difference(before, before).excludes_zero


def test_pairing_is_by_prompt_and_not_by_position():
    before = {"m": [group("a", [True]), group("b", [False])]}
    after = {"m": [group("b", [False]), group("a", [True])]}
    interval = metrics.paired_difference(before, after)
    assert interval.mean == 0
    assert -interval.low == interval.high == pytest.approx(1 - 0.025**0.5)


@pytest.mark.parametrize("num", [1, 2, 3, 4])
def test_a_handful_of_prompts_is_never_beyond_noise(num):
    before = {"m": [group(str(i), [False] * 4) for i in range(num)]}
    after = {"m": [group(str(i), [True] + [i % 2 == 0] + [False] * 2) for i in range(num)]}
    difference = metrics.paired_difference(before, after)
    assert difference.mean >= 0.25
    assert difference.low < 0 < difference.high


def test_macro_average_of_failures_is_as_unsure_as_the_rows_beside_it():
    failing = [group(str(i), [False] * 4) for i in range(8)]
    row = metrics.pass_rate_interval(failing)
    assert metrics.macro_pass_at_1({"m": failing}) == row
    both = metrics.macro_pass_at_1({"m": failing, "n": failing})
    # The mean of two draws of Beta(1, 8), integrated.
    grid = (np.arange(400) + 0.5) / 400
    draws = scipy.stats.beta(1, 8).ppf(grid)
    exact = np.quantile((draws[:, None] + draws[None, :]).ravel() / 2, 0.975)
    assert (both.mean, both.low) == (0, 0)
    assert both.high == pytest.approx(exact, abs=0.01)
    assert both.high < row.high


@pytest.mark.parametrize(("num_passed", "num"), [(1, 12), (3, 64), (4, 7), (11, 12)])
def test_few_passes_have_clopper_and_pearsons_interval(num_passed, num):
    exact = scipy.stats.binomtest(num_passed, num).proportion_ci(method="exact")
    groups = [group(str(i), [i < num_passed] * 4) for i in range(num)]
    found = metrics.pass_rate_interval(groups)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.01)


@pytest.mark.parametrize(("num", "share"), [(3, 0.5), (8, 0.1), (12, 0.3), (64, 0.05)])
def test_intervals_of_few_prompts_cover_the_truth(num, share):
    rng = np.random.default_rng(num)
    hits = 0
    for trial in range(300):
        groups = [group(str(i), [rng.random() < share]) for i in range(num)]
        found = metrics.pass_rate_interval(groups, seed=trial, num_resamples=400)
        hits += found.low <= share <= found.high
    assert hits / 300 > 0.93


def test_noise_between_few_prompts_is_seldom_called_a_change():
    rng = np.random.default_rng(5)
    false_alarms = 0
    for trial in range(300):
        rates = rng.beta(0.5, 0.5, 8)
        sides = [
            {"m": [group(str(i), (rng.random(4) < rate).tolist()) for i, rate in enumerate(rates)]}
            for _ in range(2)
        ]
        false_alarms += metrics.paired_difference(*sides, seed=trial).excludes_zero
    assert false_alarms / 300 < 0.05


def test_pairing_refuses_another_suite_and_skips_the_undecided():
    with pytest.raises(ValueError, match="one side only"):
        metrics.paired_difference({"m": [group("a", [True])]}, {"m": [group("b", [True])]})
    with pytest.raises(ValueError, match="capabilities differ"):
        metrics.paired_difference({"m": [group("a", [True])]}, {})
    before = {"m": [group("a", [False]), group("b", [None])]}
    after = {"m": [group("a", [True]), group("b", [True])]}
    assert metrics.paired_difference(before, after).mean == 1.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=30))
def test_spearman_is_pearson_of_average_ranks(pairs):
    x, y = zip(*pairs, strict=True)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(metrics.spearman(x, y))
    else:
        assert metrics.spearman(x, y) == pytest.approx(statistics.correlation(ranks(x), ranks(y)))


def test_orders_without_relation_seldom_exclude_zero():
    """Every order of up to eight, which chance makes equally likely."""
    for num in range(2, 9):
        places = list(range(num))
        orders = {}
        for order in itertools.permutations(places):
            squares = sum((a - b) ** 2 for a, b in zip(places, order, strict=True))
            orders.setdefault(squares, []).append(order)
        significant = sum(
            len(alike)
            for alike in orders.values()
            if metrics.spearman_interval(places, alike[0]).low > 0
        )
        assert significant / math.factorial(num) <= 0.025
        assert (significant > 0) is (num >= 5)


@pytest.mark.parametrize("num", [2, 3, 4, 8, 20])
def test_a_perfect_order_is_not_certain(num):
    found = metrics.spearman_interval(range(num), range(num))
    assert found.mean == found.high == 1.0
    assert found.low < 1.0
    backwards = metrics.spearman_interval(range(num), range(num, 0, -1))
    assert (backwards.low, backwards.high) == pytest.approx((-1.0, -found.low))


@pytest.mark.parametrize(("rho", "num"), [(0.3, 12), (0.9, 12), (0.6, 100)])
def test_spearman_interval_covers_the_truth(rho, num):
    """Of normal pairs the true rank correlation is 6 / pi asin(rho / 2)."""
    rng = np.random.default_rng(num)
    hits = 0
    for _ in range(600):
        x = rng.normal(size=num)
        y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=num)
        found = metrics.spearman_interval(x.tolist(), y.tolist())
        hits += found.low <= 6 / math.pi * math.asin(rho / 2) <= found.high
    assert 0.93 <= hits / 600 <= 0.985


def test_one_failing_sample_proves_no_relation():
    """Whatever its score: by chance alone it has the highest of 40 in one case of 40."""
    failures = [0.0] * 39 + [1.0]
    assert not metrics.spearman_interval(range(40), failures).excludes_zero


def test_spearman_interval_tells_a_relation_from_none():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    related = metrics.spearman_interval(x.tolist(), (x + rng.normal(size=200)).tolist())
    unrelated = metrics.spearman_interval(x.tolist(), rng.normal(size=200).tolist())
    assert related.low > 0.4
    assert related.low < related.mean < related.high
    assert not unrelated.excludes_zero
    assert math.isnan(metrics.spearman_interval([1, 1, 1], [1, 2, 3]).low)
    assert not metrics.spearman_interval([1, 1, 1], [1, 2, 3]).excludes_zero
    with pytest.raises(ValueError, match="NaN"):
        metrics.spearman([1, math.nan], [1, 2])
    with pytest.raises(ValueError, match="paired"):
        metrics.spearman([1, 2, 3], [1, 2])


def prompts_with(references):
    return [
        Prompt.make(
            messages=[{"role": "user", "content": f"question {i}"}],
            reference=reference,
            verifier="exact",
            capability="m",
        )
        for i, reference in enumerate(references)
    ]


def test_best_constant_answer_is_the_commonest_one():
    prompts = prompts_with(["yes", "no", "yes", "maybe"])
    assert metrics.best_constant_answer(prompts, lambda p, t: p.reference == t) == 0.5
    assert math.isnan(metrics.best_constant_answer([], lambda p, t: True))


def test_best_constant_answer_looks_at_what_the_policy_said():
    prompts = prompts_with(["1", "2", "3", "4"])
    # A verifier that is fooled by an answer which is nobody's reference.
    fooled = [group("x", [True])]
    share = metrics.best_constant_answer(
        prompts, lambda p, t: t == "answer True" or t == p.reference, groups=fooled
    )
    assert share == 1.0


@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=12),
    st.dictionaries(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), st.booleans()),
)
def test_best_constant_answer_equals_brute_force(references, table):
    def passes(prompt, text):
        return table.get((prompt.reference, text), prompt.reference == text)

    prompts = prompts_with(references)
    brute = max(sum(passes(p, t) for p in prompts) for t in set(references)) / len(prompts)
    assert metrics.best_constant_answer(prompts, passes) == brute
