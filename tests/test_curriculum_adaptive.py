"""The adaptive curriculum: what it believes, and what it does about it."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.curriculum import UniformSpec, build_curriculum
from tests.builders import (
    adaptive,
    counted_group,
    make_group,
    numbered_prompt,
    prompt_pool,
    proposed_ids,
)


@given(st.lists(st.integers(0, 8), max_size=30), st.floats(0.05, 0.95), st.floats(0.1, 20))
def test_posterior_is_the_closed_form_where_nothing_moves(passes, mean, strength):
    """One prompt without discount: Beta(kappa m + passes, kappa (1 - m) + fails)."""
    prompts = prompt_pool(a=2)
    curriculum = adaptive(
        prompts,
        discount=1.0,
        prior_pass_rate=mean,
        prior_strength=strength,
        shrinkage=1e9,  # the stratum's own groups count for nothing beside the prior
        probe=0,
    )
    before = curriculum.posterior(prompts[1].prompt_id)
    curriculum.observe(
        counted_group(prompts[0].prompt_id, 4, step=0)
    )  # the global mean moves with it
    for step, num_passed in enumerate(passes):
        curriculum.observe(counted_group(prompts[1].prompt_id, num_passed, step=step))
    proposed_ids(curriculum, 1)
    alpha, beta = curriculum.posterior(prompts[1].prompt_id)
    assert 0 < alpha < math.inf
    assert 0 < beta < math.inf
    untried = adaptive(prompts, prior_pass_rate=mean, prior_strength=strength)
    assert untried.posterior(prompts[0].prompt_id) == pytest.approx(before)
    assert sum(before) == pytest.approx(min(max(strength, 1 / 99), 0.97 / 0.03), rel=1e-6)
    base_alpha, base_beta = prior_of(curriculum)
    assert alpha - base_alpha == pytest.approx(sum(passes), abs=1e-3)
    assert beta - base_beta == pytest.approx(8 * len(passes) - sum(passes), abs=1e-3)


def prior_of(curriculum, level=None):
    """What is believed of an untried prompt of capability a."""
    proposed_ids(curriculum, 0)
    stranger = numbered_prompt(
        1_000_000 + len(curriculum.state_dict()["pool"]["order"]), "a", level
    )
    curriculum.add([stranger])
    return curriculum.posterior(stranger.prompt_id)


def test_older_groups_count_for_less():
    prompts = prompt_pool(a=4)
    curriculum = adaptive(prompts, discount=0.5, probe=0)
    for step, num_passed in enumerate([8, 0, 4]):
        curriculum.observe(counted_group(prompts[0].prompt_id, num_passed, step=step))
    proposed_ids(curriculum, 1)
    alpha, beta = curriculum.posterior(prompts[0].prompt_id)
    base_alpha, base_beta = prior_of(curriculum)
    assert alpha - base_alpha == pytest.approx(0.25 * 8 + 4)
    assert beta - base_beta == pytest.approx(0.5 * 8 + 4)


def test_a_dead_level_is_known_from_a_few_of_its_prompts():
    easy = [numbered_prompt(i, "a", "easy") for i in range(50)]
    dead = [numbered_prompt(i, "a", "dead") for i in range(50)]
    curriculum = adaptive(easy + dead, explore_min=0, explore_max=0, probe=0, temperature=0.05)
    for p in dead[:12]:
        curriculum.observe(counted_group(p.prompt_id, 0))
    for p in easy[:12]:
        curriculum.observe(counted_group(p.prompt_id, 4))
    chosen = set(proposed_ids(curriculum, 30))
    assert len(chosen & {p.prompt_id for p in easy}) >= 29
    for p in dead[12:]:  # and that it came back to life
        curriculum.observe(counted_group(p.prompt_id, 4, step=60))
    alpha, beta = prior_of(curriculum, "dead")
    assert alpha / (alpha + beta) > 0.4


def stepped(curriculum, rate_of, *, num_steps, batch=16, seed=0, logprob_of=None):
    """Let a policy that does not move answer; the share of groups with signal, per step."""
    rng = np.random.default_rng(seed)
    signals = []
    for step in range(num_steps):
        if logprob_of is not None:
            wanted = curriculum.prompts_to_score(batch // 2)
            curriculum.observe_likelihood({i: logprob_of[i] for i in wanted}, step=step)
        signals.append([])
        for prompt_id in proposed_ids(curriculum, batch):
            passed = (rng.random(8) < rate_of[prompt_id]).tolist()
            scored = make_group(passed, prompt_id=prompt_id, step=step)
            curriculum.observe(scored)
            signals[-1].append(scored.has_signal)
    return np.array(signals).mean(axis=1)


def mixed_pool(num=2000, alive=0.1, seed=0):
    """Prompts without levels: alive ones at 0.2 to 0.8, the others at 0 and 1."""
    rng = np.random.default_rng(seed)
    prompts = [numbered_prompt(i, "a") for i in range(num)]
    rates = np.where(rng.random(num) < alive, rng.uniform(0.2, 0.8, num), rng.integers(0, 2, num))
    return prompts, dict(zip((p.prompt_id for p in prompts), rates.tolist(), strict=True))


def test_it_finds_what_is_alive_and_comes_back_to_it():
    prompts, rate_of = mixed_pool()
    uniform = stepped(
        build_curriculum(UniformSpec(kind="uniform"), prompts, seed=0), rate_of, num_steps=40
    )
    ours = stepped(adaptive(prompts, probe=0), rate_of, num_steps=40)
    assert uniform[10:].mean() < 0.2
    assert ours[10:].mean() > 0.5


def test_good_tags_help_at_once_and_shuffled_ones_do_no_harm():
    prompts, rate_of = mixed_pool(num=6000)
    rng = np.random.default_rng(1)
    hardness = {i: -rate + rng.normal(0, 0.1) for i, rate in rate_of.items()}
    shuffled = dict(zip(hardness, rng.permutation(list(hardness.values())), strict=True))

    def early(tags):
        runs = [
            stepped(adaptive(prompts, seed=s, tags=tags, probe=0), rate_of, num_steps=15, seed=s)
            for s in range(4)
        ]
        return float(np.mean(runs))

    without = early(None)
    assert early(hardness) > 1.3 * without
    assert early(shuffled) > 0.8 * without


def test_tags_of_half_of_the_prompts_are_used_and_nan_is_none():
    prompts, rate_of = mixed_pool(num=4000)
    half = {p.prompt_id: -rate_of[p.prompt_id] for p in prompts[::2]}
    nans = half | {p.prompt_id: math.nan for p in prompts[1::2]}
    one, other = adaptive(prompts, tags=half, probe=0), adaptive(prompts, tags=nans, probe=0)
    first = stepped(one, rate_of, num_steps=12)
    assert stepped(other, rate_of, num_steps=12).tolist() == first.tolist()
    tagged = set(half)
    chosen = proposed_ids(one, 200)
    alive = [i for i in chosen if 0 < rate_of[i] < 1]
    assert sum(i in tagged for i in alive) > 0.7 * len(alive)
    with pytest.raises(ValueError, match="infinite"):
        adaptive(prompts, tags={prompts[0].prompt_id: math.inf})


def test_the_likelihood_probe_earns_its_weight_or_turns_itself_off():
    prompts, rate_of = mixed_pool(num=4000)
    rng = np.random.default_rng(2)
    telling = {i: math.log(max(r, 1e-3)) - 0.5 - rng.exponential(0.2) for i, r in rate_of.items()}
    noise = {i: -30 - 5 * rng.random() for i in rate_of}
    good, bad = adaptive(prompts), adaptive(prompts)
    with_it = stepped(good, rate_of, num_steps=20, logprob_of=telling)
    without = stepped(adaptive(prompts, probe=0), rate_of, num_steps=20)
    stepped(bad, rate_of, num_steps=60, logprob_of=noise)
    assert with_it[8:].mean() > 1.2 * without[8:].mean()
    assert good.metrics()["curriculum/a/probe_weight"] > 0.9
    assert good.prompts_to_score(2)
    assert bad.metrics()["curriculum/a/probe_weight"] < 0.6
    assert bad.prompts_to_score(2) == []
    assert adaptive(prompts, probe=0).prompts_to_score(2) == []


def test_what_has_no_answer_to_score_is_not_asked_about_again():
    some, none = prompt_pool(a=100), prompt_pool(b=100)
    curriculum = adaptive(some + none)
    others = {p.prompt_id for p in none}
    asked: list[str] = []
    for step in range(12):
        ids = curriculum.prompts_to_score(2)
        asked += [i for i in ids if i in others]
        curriculum.observe_likelihood({i: None if i in others else -1.0 for i in ids}, step=step)
    assert len(asked) == len(set(asked))
    # Six rounds of four places told that the capability has none: all places are the other's.
    assert len(asked) == 24
    again = adaptive(some + none)
    again.load_state_dict(curriculum.state_dict())
    ids = curriculum.prompts_to_score(2)
    assert again.prompts_to_score(2) == ids
    assert len(ids) == 8
    assert not others & set(ids)


def test_a_likelihood_that_is_none_is_refused():
    curriculum = adaptive(prompt_pool(a=2))
    for value in (math.nan, 0.5):
        with pytest.raises(ValueError, match="no log-probability"):
            curriculum.observe_likelihood({prompt_pool(a=2)[0].prompt_id: value}, step=0)


def test_solved_prompts_are_reviewed_and_unsolved_ones_wait_longer_each_time():
    prompts = prompt_pool(a=40)
    curriculum = adaptive(
        prompts, review=0.1, retry=0.1, backoff=4, probe=0, explore_min=0, explore_max=0
    )
    solved = {p.prompt_id for p in prompts[:15]}
    dead = {p.prompt_id for p in prompts[15:30]}
    reasons, retries = Counter(), {}
    for step in range(60):
        for p in curriculum.propose(10, num_generations=8):
            reasons[p.reason] += 1
            if p.prompt_id in dead and p.reason in ("retried", "selected"):
                retries.setdefault(p.prompt_id, []).append(step)
            passed = 8 if p.prompt_id in solved else 0 if p.prompt_id in dead else 4
            curriculum.observe(counted_group(p.prompt_id, passed, step=step))
    assert reasons["reviewed"] == pytest.approx(60, abs=12)
    waits = [np.diff(steps) for steps in retries.values() if len(steps) > 2]
    assert waits
    assert all(w[0] >= 4 and w[1] >= 8 for w in waits)
    metrics = curriculum.metrics()
    assert metrics["curriculum/a/solved"] == pytest.approx(15 / 40, abs=0.1)
    assert metrics["curriculum/a/unsolved"] == pytest.approx(15 / 40, abs=0.06)


def test_the_explored_share_follows_what_is_alive():
    def explored(rate):
        prompts = prompt_pool(a=3000)
        curriculum = adaptive(prompts, explore_min=0.02, explore_max=0.2, probe=0)
        reasons = Counter()
        for step in range(30):
            for p in curriculum.propose(20, num_generations=8):
                reasons[p.reason] += 1
                curriculum.observe(counted_group(p.prompt_id, rate, step=step))
        return reasons["explored"] / reasons.total()

    assert explored(4) == pytest.approx(0.2, abs=0.03)
    assert explored(0) < 0.06


def test_the_band_moves_to_harder_prompts_as_the_capability_is_mastered():
    prompts = prompt_pool(a=400)
    curriculum = adaptive(prompts, probe=0)
    centres = []
    for step in range(40):
        for p in curriculum.propose(10, num_generations=8):
            curriculum.observe(counted_group(p.prompt_id, 2 if step < 20 else 7, step=step))
        centres.append(curriculum.metrics()["curriculum/a/centre"])
    assert centres[15] == pytest.approx(0.5, abs=0.02)
    assert 0.4 <= centres[-1] < 0.45


def test_pilots_where_they_save_and_their_continuation():
    prompts, rate_of = mixed_pool(num=4000, alive=0.05)
    curriculum = adaptive(prompts, probe=0)
    stepped(curriculum, rate_of, num_steps=8)
    proposals = curriculum.propose(16, num_generations=8)
    pilot = next(p for p in proposals if p.num_pilot is not None and p.decision["alpha"] < 1)
    num = pilot.num_pilot
    assert num is not None
    assert 2 <= num < 8
    assert not curriculum.continues(pilot.prompt_id, num_passed=0, num_decided=num)
    assert not curriculum.continues(pilot.prompt_id, num_passed=num, num_decided=num)
    assert curriculum.continues(pilot.prompt_id, num_passed=1, num_decided=num)
    assert not any(
        p.num_pilot for p in adaptive(prompts, pilot=False).propose(9, num_generations=8)
    )
    assert {"alpha", "beta", "centre", "share"} <= set(pilot.decision)


def test_a_failed_pilot_is_stopped_though_no_group_ever_had_signal():
    prompts = prompt_pool(a=600)
    curriculum = adaptive(prompts, probe=0)
    for step in range(4):
        for p in curriculum.propose(16, num_generations=16):
            curriculum.observe(counted_group(p.prompt_id, 0, num=16, step=step))
    proposals = curriculum.propose(16, num_generations=16)
    pilots = [(p.prompt_id, p.num_pilot) for p in proposals if p.num_pilot]
    assert curriculum.metrics()["curriculum/signal_per_rollout"] == 0.0
    assert pilots
    for prompt_id, num in pilots:
        assert not curriculum.continues(prompt_id, num_passed=0, num_decided=num)
        assert curriculum.continues(prompt_id, num_passed=1, num_decided=num)


def test_a_stratum_without_likelihoods_does_not_keep_others_from_being_asked():
    prompts = [numbered_prompt(i, "a", "mute") for i in range(100)]
    prompts += [numbered_prompt(i, "a", "told") for i in range(2000)]
    level = {p.prompt_id: p.level for p in prompts}
    rng = np.random.default_rng(0)
    rates = np.where(rng.random(len(prompts)) < 0.1, 0.5, 1e-4)
    rate_of = {p.prompt_id: rate for p, rate in zip(prompts, rates.tolist(), strict=True)}
    rate_of |= {i: 0.5 for i in rate_of if level[i] == "mute"}
    curriculum = adaptive(prompts)
    for step in range(20):
        asked = curriculum.prompts_to_score(16)
        assert len(asked) >= 48, "a quarter may be refreshed where there is something stale"
        told = {i: None if level[i] == "mute" else math.log(rate_of[i]) for i in asked}
        curriculum.observe_likelihood(told, step=step)
        for p in curriculum.propose(16, num_generations=8):
            num_passed = int(rng.binomial(8, rate_of[p.prompt_id]))
            curriculum.observe(counted_group(p.prompt_id, num_passed, step=step))


def test_predictions_are_calibrated_on_a_policy_that_does_not_move():
    rng = np.random.default_rng(3)
    prompts = prompt_pool(a=400)
    rate_of = dict(zip((p.prompt_id for p in prompts), rng.beta(0.5, 0.7, 400), strict=True))
    curriculum = adaptive(prompts, probe=0)
    stepped(curriculum, rate_of, num_steps=150)
    proposed_ids(curriculum, 1)
    assert curriculum.metrics()["curriculum/error"] < 0.05
    bins = [b for b in curriculum.reliability() if b[2] > 500]
    assert len(bins) >= 4
    assert all(abs(predicted - observed) < 0.1 for predicted, observed, _ in bins)
