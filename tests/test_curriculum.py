"""The curricula: quotas, coverage, estimates, and a future fixed by seed and observations."""

import json
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.curriculum import build_curriculum
from posttrain.curriculum.estimate import PassRates
from posttrain.curriculum.quotas import Quotas, shares_of
from posttrain.errors import RecipeError
from posttrain.recipe.schema import BandCurriculum, UniformCurriculum
from posttrain.records import Outcome, Prompt, Rollout, RolloutGroup


def prompt(number, capability="math", level=None):
    return Prompt.make(
        messages=[{"role": "user", "content": f"{capability} {level} {number}"}],
        reference="1",
        verifier="exact",
        capability=capability,
        level=level,
    )


def pool(**sizes):
    return [prompt(i, capability) for capability, size in sizes.items() for i in range(size)]


def group(prompt_id, passes, step=0):
    rollouts = tuple(
        Rollout(
            completion_ids=[1],
            logprobs=[-1.0],
            text="",
            finish_reason="stop",
            outcome=Outcome(passed=p, score=float(bool(p)), why=""),
        )
        for p in passes
    )
    return RolloutGroup(prompt_id=prompt_id, step=step, policy_version=step, rollouts=rollouts)


def ids(curriculum, num_prompts, **where):
    proposals = curriculum.propose(num_prompts, num_generations=4, **where)
    return [proposal.prompt_id for proposal in proposals]


def band(prompts, *, seed=0, prior=None, **keys):
    return build_curriculum(BandCurriculum(kind="band", **keys), prompts, seed=seed, prior=prior)


def by_capability(prompts, prompt_ids):
    capability = {p.prompt_id: p.capability for p in prompts}
    return Counter(capability[i] for i in prompt_ids)


kinds = st.sampled_from([BandCurriculum(kind="band"), UniformCurriculum(kind="uniform")])


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any),
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
)
def test_division_is_exact_and_never_drifts(weights, sizes):
    shares = shares_of(
        {f"c{i}": w for i, w in enumerate(weights)}, [f"c{i}" for i in range(len(weights))]
    )
    quotas = Quotas(shares)
    given_out = Counter()
    for size in sizes:
        parts = quotas.divide(size)
        assert sum(parts.values()) == size
        assert min(parts.values()) >= 0
        given_out.update(parts)
    total = sum(sizes)
    for capability, share in shares.items():
        assert abs(given_out[capability] - share * total) < 2


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 13), st.integers(1, 5))
def test_long_run_shares_are_exact(weights, size, periods):
    shares = shares_of(
        {f"c{i}": w for i, w in enumerate(weights)}, [f"c{i}" for i in range(len(weights))]
    )
    quotas = Quotas(shares)
    given_out = Counter()
    steps = periods * math.lcm(*(share.denominator for share in shares.values()))
    for _ in range(steps):
        given_out.update(quotas.divide(size))
    assert given_out == {c: share * steps * size for c, share in shares.items()}


def test_first_batch_is_the_largest_remainder_division():
    shares = shares_of({"a": 0.5, "b": 0.3, "c": 0.2}, ["a", "b", "c"])
    assert shares == {"a": Fraction(1, 2), "b": Fraction(3, 10), "c": Fraction(1, 5)}
    assert Quotas(shares).divide(9) == {"a": 4, "b": 3, "c": 2}


def test_quotas_that_do_not_fit_are_named():
    prompts = pool(math=2, code=2)
    for quotas, words in [
        ({"math": 1, "code": 1, "chat": 1}, "quotas name chat"),
        ({"math": 1}, "quotas lack code"),
        ({"math": 0, "code": 0}, "all 0"),
    ]:
        with pytest.raises(RecipeError, match=words):
            band(prompts, quotas=quotas)
    for share in (-1.0, math.nan, math.inf):
        with pytest.raises(RecipeError, match=r"quotas\.math"):
            shares_of({"math": share, "code": 2.0}, ["math", "code"])
    with pytest.raises(RecipeError, match="no prompts"):
        band([])
    with pytest.raises(ValueError, match="twice"):
        band([prompts[0], prompts[0]])


def test_zero_share_leaves_a_capability_out_even_when_the_others_run_dry():
    prompts = pool(math=3, code=9)
    curriculum = band(prompts, quotas={"math": 1, "code": 0})
    assert by_capability(prompts, ids(curriculum, 8)) == {"math": 3}
    with pytest.raises(ValueError, match="no quota"):
        ids(curriculum, 1, capability="code")


@settings(max_examples=60, deadline=None)
@given(
    kinds,
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(1, 8), min_size=1),
    st.integers(0, 30),
    st.lists(st.integers(0, 12), min_size=1, max_size=6),
    st.data(),
)
def test_proposals_are_distinct_allowed_and_as_many_as_there_are(spec, sizes, seed, asks, data):
    prompts = pool(**sizes)
    curriculum = build_curriculum(spec, prompts, seed=seed)
    everyone = [p.prompt_id for p in prompts]
    for ask in asks:
        exclude = data.draw(st.sets(st.sampled_from(everyone)))
        capability = data.draw(st.sampled_from([None, *sorted(sizes)]))
        proposed = ids(curriculum, ask, exclude=exclude, capability=capability)
        eligible = {p.prompt_id for p in prompts if capability in (None, p.capability)} - exclude
        assert len(set(proposed)) == len(proposed) == min(ask, len(eligible))
        assert set(proposed) <= eligible
        for prompt_id in proposed:
            curriculum.observe(
                group(
                    prompt_id, data.draw(st.sampled_from([[True] * 4, [False] * 4, [True, False]]))
                )
            )


@settings(max_examples=60, deadline=None)
@given(
    kinds,
    st.integers(0, 1000),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=2, max_size=12),
    st.data(),
)
def test_saved_state_goes_on_exactly_and_equal_seeds_agree(spec, seed, steps, data):
    prompts = pool(a=13, b=7, c=5)
    stop = data.draw(st.integers(1, len(steps) - 1))

    def run(curriculum, part, taken):
        for ask, passes in part:
            proposed = ids(curriculum, ask)
            for prompt_id in proposed:
                curriculum.observe(group(prompt_id, [i < passes for i in range(4)]))
            refill = ids(curriculum, 2, exclude=set(proposed), capability="a")
            taken.append((proposed, refill))
        return taken

    unbroken = build_curriculum(spec, prompts, seed=seed)
    again = build_curriculum(spec, prompts, seed=seed)
    expected = run(unbroken, steps, [])
    assert run(again, steps, []) == expected

    broken = build_curriculum(spec, prompts, seed=seed)
    taken = run(broken, steps[:stop], [])
    state = json.loads(json.dumps(broken.state_dict(), allow_nan=False))
    run(broken, steps[stop:], [])  # must not reach into the saved state
    restored = build_curriculum(spec, prompts, seed=seed + 1)
    run(restored, steps[:1], [])  # what was there before must not shine through
    restored.load_state_dict(state)
    assert run(restored, steps[stop:], taken) == expected
    assert json.dumps(restored.state_dict()) == json.dumps(unbroken.state_dict())
    assert restored.metrics() == unbroken.metrics()


def test_another_seed_proposes_otherwise():
    prompts = pool(a=40)
    assert ids(band(prompts, seed=0), 10) != ids(band(prompts, seed=1), 10)


def test_state_of_another_pool_or_kind_is_refused():
    state = band(pool(a=3)).state_dict()
    with pytest.raises(ValueError, match="another set of prompts"):
        band(pool(a=4)).load_state_dict(state)
    uniform = build_curriculum(UniformCurriculum(kind="uniform"), pool(a=3), seed=0)
    with pytest.raises(ValueError, match="of kind band"):
        uniform.load_state_dict(state)
    with pytest.raises(ValueError, match="of kind uniform"):
        band(pool(a=3)).load_state_dict(uniform.state_dict())


@given(kinds, st.integers(0, 50))
def test_a_batch_meets_its_quotas_and_refills_do_not_touch_them(spec, seed):
    prompts = pool(a=30, b=30)
    curriculum = build_curriculum(spec, prompts, seed=seed)
    counts = Counter()
    for _ in range(4):
        batch = ids(curriculum, 5)
        counts += by_capability(prompts, batch)
        refill = ids(curriculum, 3, capability="a", exclude=set(batch))
        assert by_capability(prompts, refill) == {"a": 3}
    assert counts == {"a": 10, "b": 10}


def test_a_dry_capability_leaves_its_places_to_the_others():
    prompts = pool(a=2, b=30)
    batch = ids(band(prompts), 10)
    assert by_capability(prompts, batch) == {"a": 2, "b": 8}


@pytest.mark.parametrize(
    "spec", [BandCurriculum(kind="band", explore=0), UniformCurriculum(kind="uniform")]
)
def test_the_whole_pool_is_seen_before_anything_twice(spec):
    prompts = pool(a=20)
    curriculum = build_curriculum(spec, prompts, seed=3)
    rounds = [ids(curriculum, 7) for _ in range(3)]
    assert set().union(*rounds) == {p.prompt_id for p in prompts}
    assert len(set(rounds[0]) | set(rounds[1])) == 14


def test_prompts_in_the_band_come_first_and_the_explored_share_is_exact():
    prompts = pool(a=60)
    curriculum = band(prompts, explore=0.25, discount=1.0)
    for i, p in enumerate(prompts):  # every third is useful, the others always pass or always fail
        curriculum.observe(group(p.prompt_id, [[True, False], [True] * 40, [False] * 40][i % 3]))
    useful = {p.prompt_id for i, p in enumerate(prompts) if i % 3 == 0}
    exploit = band(prompts, explore=0.0, discount=1.0)
    state = curriculum.state_dict()
    exploit.load_state_dict(state)
    assert set(ids(exploit, 20)) == useful
    # 8 of 32 are explored: useful ones come from the other 24, of which there are 20 at most.
    ids(curriculum, 32)
    assert curriculum.state_dict()["pool"]["num_explored"] == {"a": 8}


def test_refill_outside_the_band_rather_than_none():
    prompts = pool(a=6)
    curriculum = band(prompts)
    for p in prompts:
        curriculum.observe(group(p.prompt_id, [False] * 64))
    assert len(ids(curriculum, 4, capability="a")) == 4


def test_a_dead_level_is_known_from_a_few_of_its_prompts():
    easy = [prompt(i, "a", "easy") for i in range(50)]
    dead = [prompt(i, "a", "dead") for i in range(50)]
    curriculum = band(easy + dead, explore=0.0)
    for p in dead[:4]:
        curriculum.observe(group(p.prompt_id, [False] * 8))
    for p in easy[:4]:
        curriculum.observe(group(p.prompt_id, [True, False] * 4))
    assert set(ids(curriculum, 50)) == {p.prompt_id for p in easy}
    assert curriculum.metrics()["curriculum/a/in_band"] == 0.5


def test_one_learns_that_a_level_came_back_to_life():
    prompts = [prompt(i, "a", "x") for i in range(40)]
    rates = PassRates(prompts, prior_pass_rate=0.5, prior_weight=2.0, discount=0.5)
    for p in prompts[:10]:
        rates.observe(group(p.prompt_id, [False] * 8))
    assert rates.mean_P()[39] < 0.05
    for p in prompts[10:34]:
        rates.observe(group(p.prompt_id, [True, False] * 4))
    assert 0.3 < rates.mean_P()[39] < 0.5


def test_estimate_is_the_discounted_beta_mean():
    prompts = [prompt(0)]
    rates = PassRates(
        prompts,
        prior_pass_rate=0.5,
        prior_weight=2.0,
        discount=0.5,
        prior={prompts[0].prompt_id: 0.25},
    )
    assert rates.mean_P().tolist() == [0.25]
    rates.observe(group(prompts[0].prompt_id, [True, True, False, None]))
    rates.observe(group(prompts[0].prompt_id, [False, False]))
    # S = 0.5 * 2, F = 0.5 * 1 + 2, prior 2 rollouts at 0.25
    assert rates.mean_P()[0] == pytest.approx((0.5 + 1.0) / (2 + 1.0 + 2.5))


def test_undecided_groups_teach_nothing():
    prompts = pool(a=3)
    curriculum = band(prompts)
    before = json.dumps(curriculum.state_dict())
    curriculum.observe(group(prompts[0].prompt_id, [None, None]))
    assert json.dumps(curriculum.state_dict()) == before


def test_a_prior_is_used_until_rollouts_say_otherwise():
    prompts = pool(a=10)
    prior = {p.prompt_id: (0.5 if i < 5 else 0.01) for i, p in enumerate(prompts)}
    curriculum = band(prompts, prior=prior, explore=0.0)
    assert set(ids(curriculum, 5)) == {p.prompt_id for p in prompts[:5]}
    for p in prompts[5:]:
        curriculum.observe(group(p.prompt_id, [True, False] * 4))
    for p in prompts[:5]:
        curriculum.observe(group(p.prompt_id, [True] * 64))
    assert set(ids(curriculum, 5)) == {p.prompt_id for p in prompts[5:]}
    with pytest.raises(ValueError, match="no pass rate"):
        band(prompts, prior={prompts[0].prompt_id: 1.5})


def test_a_stranger_is_refused():
    with pytest.raises(ValueError, match="not in this curriculum"):
        band(pool(a=2)).observe(group("nobody", [True]))
    with pytest.raises(ValueError, match="num_prompts"):
        ids(band(pool(a=2)), -1)


def test_band_finds_the_useful_prompts_of_a_toy_policy():
    """Against the uniform control on a pool of which 3 in 4 prompts teach nothing."""
    rng = np.random.default_rng(5)
    levels = {"dead": 0.0, "solved": 1.0, "hard": 0.02, "useful": 0.5}
    prompts = [prompt(i, "a", level) for level in levels for i in range(60)]
    rate_of = {p.prompt_id: levels[p.level or ""] for p in prompts}

    def share_with_signal(curriculum):
        signals = []
        for step in range(30):
            for prompt_id in ids(curriculum, 8):
                passes = (rng.random(8) < rate_of[prompt_id]).tolist()
                scored = group(prompt_id, passes, step)
                curriculum.observe(scored)
                signals.append(scored.has_signal)
        return float(np.mean(signals))

    uniform = share_with_signal(
        build_curriculum(UniformCurriculum(kind="uniform"), prompts, seed=0)
    )
    assert uniform < 0.4
    assert share_with_signal(band(prompts)) > 2 * uniform
