"""The curriculum's formulas against scipy, enumeration and sampling."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from posttrain.curriculum.beta import (
    Calibration,
    best_pilot,
    expected_squared_advantages,
    expected_variance,
    leave_one_out_advantages,
    log_predictive,
    mixed_probability,
    posterior_advantages,
    probability_above,
    signal_pass_rate,
    signal_per_remaining_rollout,
)
from posttrain.curriculum.counts import Inbox, StepCounts
from posttrain.curriculum.evidence import DISCOUNTS, DiscountChoice
from posttrain.curriculum.pool import gumbel_top
from posttrain.curriculum.priors import LikelihoodMap, StratumPrior, tag_bins, tag_edges
from posttrain.curriculum.selection import largest_gumbels
from posttrain.records import Prompt

shape = st.floats(0.01, 60.0)


def one(value):
    return np.array([float(value)])


def visits(index, passed, decided, step=0):
    return StepCounts(
        step=step,
        index_N=np.array(index),
        num_passed_N=np.array(passed),
        num_decided_N=np.array(decided),
        undecided_U=np.zeros(0, dtype=np.int64),
    )


@settings(deadline=None)
@given(shape, shape, st.integers(2, 64))
def test_mixed_probability_is_the_ratio_of_beta_functions(alpha, beta, num):
    log_b = special.betaln(alpha, beta)
    expected = 1.0
    expected -= math.exp(special.betaln(alpha + num, beta) - log_b)
    expected -= math.exp(special.betaln(alpha, beta + num) - log_b)
    assert mixed_probability(one(alpha), one(beta), num)[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("alpha", "beta", "num"), [(0.3, 2.0, 8), (4.0, 4.0, 4), (0.05, 0.1, 16)])
def test_mixed_probability_by_sampling(alpha, beta, num):
    rng = np.random.default_rng(0)
    passed = rng.binomial(num, rng.beta(alpha, beta, 400_000))
    share = np.mean((passed > 0) & (passed < num))
    assert mixed_probability(one(alpha), one(beta), num)[0] == pytest.approx(share, abs=0.004)


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.5])
def test_mixed_probability_by_enumeration_at_a_known_pass_rate(rate):
    """A belief that is nearly certain, against all 2^5 outcomes."""
    expected = sum(
        math.prod(rate if o else 1 - rate for o in outcomes)
        for outcomes in itertools.product([0, 1], repeat=5)
        if 0 < sum(outcomes) < 5
    )
    found = mixed_probability(one(1e7 * rate), one(1e7 * (1 - rate)), 5)[0]
    assert found == pytest.approx(expected, abs=1e-5)


@settings(deadline=None)
@given(shape, shape)
def test_moments_against_scipy(alpha, beta):
    belief = stats.beta(alpha, beta)
    mean, variance = belief.stats(moments="mv")
    p_q = mean - variance - mean**2
    assert expected_variance(one(alpha), one(beta))[0] == pytest.approx(float(p_q), rel=1e-6)
    third = math.exp(special.betaln(alpha + 2, beta + 1) - special.betaln(alpha, beta))
    assert signal_pass_rate(one(alpha), one(beta))[0] == pytest.approx(third / float(p_q), rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(shape, shape, st.integers(0, 6), st.integers(0, 6), st.integers(1, 8))
def test_expected_squared_advantages_by_enumeration(alpha, beta, passed, failed, more):
    """Sum over the Beta-binomial of what comes."""
    decided, total = passed + failed, passed + failed + more
    come: Any = stats.betabinom(more, alpha, beta)
    expected = sum(
        float(come.pmf(x)) * (passed + x) * (total - passed - x) / total for x in range(more + 1)
    )
    found = expected_squared_advantages(
        one(alpha),
        one(beta),
        num_passed=one(passed),
        num_decided=one(decided),
        num_more=one(more),
    )
    assert found[0] == pytest.approx(expected, rel=1e-6, abs=1e-9)


@settings(deadline=None)
@given(shape, shape, st.integers(0, 12), st.integers(0, 12))
def test_log_predictive_is_the_product_of_one_rollout_at_a_time(alpha, beta, passed, failed):
    chance = math.prod((alpha + j) / (alpha + beta + j) for j in range(passed))
    chance *= math.prod((beta + j) / (alpha + beta + passed + j) for j in range(failed))
    found = log_predictive(one(alpha), one(beta), np.array([passed]), np.array([passed + failed]))
    assert found[0] == pytest.approx(math.log(chance), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 0.3), (2.0, 1.0), (30.0, 4.0)])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_probability_above_by_sampling(rate, alpha, beta):
    p = np.random.default_rng(0).beta(alpha, beta, 200_000)
    found = probability_above(rate, one(alpha), one(beta))[0]
    assert found == pytest.approx(np.mean(p > rate), abs=0.004)


def test_gumbel_top_draws_in_proportion_without_replacement():
    """First draws against the weights; pairs against successive draws."""
    rng = np.random.default_rng(0)
    weights = np.array([4.0, 3.0, 2.0, 1.0])
    draws = [tuple(gumbel_top(np.log(weights), 2, rng).tolist()) for _ in range(20_000)]
    share = weights / weights.sum()
    for a, b in itertools.permutations(range(4), 2):
        expected = share[a] * share[b] / (1 - share[a])
        assert draws.count((a, b)) / 20_000 == pytest.approx(expected, abs=0.012)


def test_largest_gumbels_are_the_order_statistics():
    rng = np.random.default_rng(0)
    drawn = np.array([largest_gumbels(np.array([50, 2]), 3, rng) for _ in range(4000)])
    direct = -np.sort(-rng.gumbel(size=(4000, 50)), axis=1)[:, :3]
    for k in range(3):
        test: Any = stats.ks_2samp(drawn[:, 0, k], direct[:, k])
        assert test.pvalue > 1e-3
    assert np.all(drawn[:, 1, 2] == -np.inf)
    assert np.all(np.diff(drawn[:, 0], axis=1) <= 0)


def test_the_best_pilot_is_best_by_simulation():
    """Signal per rollout of every pilot, drawn a hundred thousand times."""
    rng = np.random.default_rng(0)
    for alpha, beta in [(0.05, 0.2), (0.3, 0.3), (4.0, 4.0)]:
        p = rng.beta(alpha, beta, 200_000)
        ratios = {}
        for num in (2, 3, 4, 6, 8):
            pilot = rng.binomial(num, p)
            mixed = (pilot > 0) & (pilot < num) | (num == 8)
            total = pilot + rng.binomial(8 - num, p)
            ratios[num] = np.mean(mixed * total * (8 - total) / 8) / np.mean(
                num + mixed * (8 - num)
            )
        chosen, cost = best_pilot(one(alpha), one(beta), 8)
        best = max(ratios.values())
        assert ratios[int(chosen[0])] > 0.98 * best or ratios[8] > best / 1.11
        pilot = rng.binomial(int(chosen[0]), p)
        mixed = (pilot > 0) & (pilot < chosen[0])
        spent = np.mean(chosen[0] + mixed * (8 - chosen[0]))
        assert cost[0] == pytest.approx(spent, rel=0.01)


def test_the_gain_of_the_rest_is_per_rollout():
    # Certain p = 1/2, one of two passed: of 8 rollouts E[C (8 - C)] / 8 with C = 1 + Bin(6, 1/2).
    expected = sum(math.comb(6, x) / 64 * (1 + x) * (7 - x) / 8 for x in range(7))
    found = signal_per_remaining_rollout(1e8, 1e8, num_passed=1, num_decided=2, num_more=6)
    assert found == pytest.approx((expected - 0.5) / 6, rel=1e-5)
    assert signal_per_remaining_rollout(0.02, 0.1, num_passed=0, num_decided=4, num_more=4) < 0.01


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=2, max_size=16))
def test_leave_one_out_without_belief_is_rloo(outcomes):
    passed = np.array(outcomes, dtype=float)
    others = (passed.sum() - passed) / (len(passed) - 1)
    found = leave_one_out_advantages(passed, alpha=0.0, beta=0.0, scale=False)
    assert found == pytest.approx(passed - others)


def test_posterior_advantages_by_hand():
    passed = np.array([1.0, 0.0, 0.0, np.nan])
    # Beta(2, 3) and one of three: mean 3/8.
    deviation = math.sqrt(3 / 8 * 5 / 8)
    expected = [5 / 8 / deviation, -3 / 8 / deviation, -3 / 8 / deviation, 0.0]
    assert posterior_advantages(passed, alpha=2.0, beta=3.0) == pytest.approx(expected)
    # Each against Beta(2, 3) and the other two decided ones.
    expected = [1 - 2 / 7, -3 / 7, -3 / 7, 0.0]
    found = leave_one_out_advantages(passed, alpha=2.0, beta=3.0, scale=False)
    assert found == pytest.approx(expected)
    # All wrong where half was expected: they teach, and less so the more was expected.
    wrong = np.zeros(4)
    assert posterior_advantages(wrong, alpha=2.0, beta=2.0)[0] < -0.5
    assert posterior_advantages(wrong, alpha=0.1, beta=9.0)[0] > -0.2
    with pytest.raises(ValueError, match="give a belief"):
        leave_one_out_advantages(np.array([1.0]), alpha=0.0, beta=0.0)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.15, 0.85), st.sampled_from([0.3, 1.0, 4.0, 12.0]), st.integers(0, 20))
def test_the_stratum_prior_finds_the_beta_that_prompts_come_from(mean, strength, seed):
    rng = np.random.default_rng(seed)
    prompts = [
        Prompt(prompt_id=str(i), messages=[], reference="", verifier="exact", capability="a")
        for i in range(3000)
    ]
    prior = StratumPrior(prompts, {}, mean=0.5, strength=1.0, shrinkage=4.0)
    strata = prior.strata_of(prompts)
    passed = rng.binomial(8, rng.beta(mean * strength, (1 - mean) * strength, 3000))
    prior.observe(visits(np.arange(3000), passed, np.full(3000, 8)), strata, np.ones(3000))
    found_mean, found_strength = prior.parameters()
    assert found_mean[0] == pytest.approx(mean, abs=0.05)
    assert math.log(found_strength[0]) == pytest.approx(math.log(strength), abs=0.5)


def test_the_tag_map_is_monotone_and_flat_for_shuffled_tags():
    rng = np.random.default_rng(0)
    tags = rng.random(4000)
    edges = tag_edges(tags)
    bins = tag_bins(tags, edges)
    assert np.bincount(bins).tolist() == [400] * 10
    assert tag_bins(np.array([np.nan, -1.0, 2.0]), edges).tolist() == [-1, 0, 9]
    prompts = [
        Prompt(prompt_id=str(i), messages=[], reference="", verifier="exact", capability="a")
        for i in range(4000)
    ]
    for rates, rises in ((1 - tags, True), (rng.permutation(tags), False)):
        by_id = {str(i): tag for i, tag in enumerate(tags.tolist())}
        prior = StratumPrior(prompts, by_id, mean=0.5, strength=1.0, shrinkage=8.0)
        strata = prior.strata_of(prompts)
        passed = rng.binomial(8, rates)
        prior.observe(visits(np.arange(4000), passed, np.full(4000, 8)), strata, np.ones(4000))
        means, _ = prior.parameters()
        by_bin = [means[prior.strata.index(("a", "", b))] for b in range(10)]
        assert (by_bin[0] - by_bin[9] > 0.7) == rises
        # Strata shrink towards a falling map: shuffled tags leave only their own small noise.
        assert max(np.diff(by_bin)) < 0.05
        if not rises:
            assert np.ptp(by_bin) < 0.1


def test_the_likelihood_map_where_likelihood_is_the_pass_rate():
    rng = np.random.default_rng(0)
    likelihoods = LikelihoodMap(1)
    for _ in range(30):
        p = rng.beta(0.4, 0.6, 16)
        likelihoods.observe(
            0,
            np.log(np.maximum(p, 1e-6)),
            rng.binomial(8, p),
            np.full(16, 8),
            prior=(np.full(16, 0.4), np.full(16, 0.6)),
            evidence=(np.zeros(16), np.zeros(16)),
        )
    assert likelihoods.weight_C[0] > 0.99
    assert likelihoods.is_useful(0)
    for rate in (0.05, 0.4, 0.9):
        mean, strength = likelihoods.beliefs(0, np.array([math.log(rate)]))
        assert mean[0] == pytest.approx(rate, abs=0.12)
        assert strength[0] > 4


def test_the_discount_is_chosen_by_what_predicts():
    rng = np.random.default_rng(0)
    index = np.arange(200)

    def chosen(rates_of_step):
        choice = DiscountChoice()
        for step in range(25):
            passed = rng.binomial(8, rates_of_step(step))
            one_step = visits(index, passed, np.full(200, 8), step)
            choice.observe(one_step, np.full(200, 0.5), np.full(200, 0.5))
        return choice.best

    still = rng.random(200)
    assert chosen(lambda step: still) == 1.0
    walks = np.cumsum(rng.normal(0, 1.5, (25, 200)), axis=0)
    assert chosen(lambda step: special.expit(walks[step])) <= DISCOUNTS[1]


def test_calibration_of_known_beliefs():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    calibration = Calibration()
    calibration.observe(1e6 * p, 1e6 * (1 - p), rng.binomial(4, p), np.full(20_000, 4))
    told = calibration.metrics()
    assert told["error"] < 0.01
    assert told["brier"] == pytest.approx(np.mean(p * (1 - p)), abs=0.005)
    entropy = np.mean(-p * np.log(p) - (1 - p) * np.log1p(-p))
    assert told["log_loss"] == pytest.approx(entropy, abs=0.01)
    for predicted, observed, _ in calibration.reliability():
        assert predicted == pytest.approx(observed, abs=0.03)


def test_the_inbox_counts_a_prompt_once_a_step():
    inbox = Inbox()
    for step, index, passed in [(1, 5, 2), (0, 7, 1), (1, 2, 0), (1, 5, 1)]:
        inbox.put(step, index, passed, 4)
    inbox.put(0, 9, 0, 0)
    first, second = inbox.take()
    assert (first.step, first.index_N.tolist()) == (0, [7])
    assert second.index_N.tolist() == [2, 5]
    assert second.num_passed_N.tolist() == [0, 3]
    assert second.num_decided_N.tolist() == [4, 8]
    assert not list(inbox.take())
