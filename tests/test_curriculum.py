"""The curricula: quotas, beliefs, queues, bad input, and a future fixed by seed and groups."""

import json
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.curriculum import Adaptive, build_curriculum
from posttrain.curriculum.quotas import Quotas, shares_of
from posttrain.errors import RecipeError
from posttrain.recipe import load_curriculum
from posttrain.recipe.curricula import AdaptiveCurriculum, UniformCurriculum
from posttrain.records import Outcome, Prompt, Rollout, RolloutGroup
from posttrain.tables import read_arrays, write_arrays

SHIPPED = {
    path.stem: load_curriculum(path)
    for path in sorted((Path(__file__).parent.parent / "curricula").glob("*.yaml"))
}
UNIFORM = UniformCurriculum(kind="uniform")


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


def counted(prompt_id, num_passed, num=8, step=0):
    return group(prompt_id, [i < num_passed for i in range(num)], step)


def ids(curriculum, num_prompts, *, num_generations=8, **where):
    proposals = curriculum.propose(num_prompts, num_generations=num_generations, **where)
    return [proposal.prompt_id for proposal in proposals]


def adaptive(prompts, *, seed=0, tags=None, **keys):
    return Adaptive(AdaptiveCurriculum(kind="adaptive", **keys), prompts, seed=seed, tags=tags)


def by_capability(prompts, prompt_ids):
    capability = {p.prompt_id: p.capability for p in prompts}
    return Counter(capability[i] for i in prompt_ids)


kinds = st.sampled_from(list(SHIPPED.values()))
all_kinds = pytest.mark.parametrize("spec", SHIPPED.values(), ids=SHIPPED)


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
            adaptive(prompts, quotas=quotas)
    for share in (-1.0, math.nan, math.inf):
        with pytest.raises(RecipeError, match=r"quotas\.math"):
            shares_of({"math": share, "code": 2.0}, ["math", "code"])


@all_kinds
def test_an_empty_pool_duplicates_and_strangers_are_named(spec):
    with pytest.raises(RecipeError, match="no prompts"):
        build_curriculum(spec, [], seed=0)
    twice = [prompt(0), prompt(1), prompt(1)]
    with pytest.raises(ValueError, match=f"1 prompts .* twice, {twice[1].prompt_id}"):
        build_curriculum(spec, twice, seed=0)
    curriculum = build_curriculum(spec, pool(a=2), seed=0)
    with pytest.raises(ValueError, match="prompt nobody is not in this curriculum"):
        curriculum.observe(group("nobody", [True]))
    with pytest.raises(ValueError, match="num_prompts"):
        ids(curriculum, -1)
    with pytest.raises(ValueError, match="'b' has no quota; there are a"):
        ids(curriculum, 1, capability="b")
    with pytest.raises(ValueError, match="'b' has no quota"):
        curriculum.add(pool(b=1))
    with pytest.raises(ValueError, match="twice"):
        curriculum.add(pool(a=1))


def test_zero_share_leaves_a_capability_out_even_when_the_others_run_dry():
    prompts = pool(math=3, code=9)
    curriculum = adaptive(prompts, quotas={"math": 1, "code": 0})
    assert by_capability(prompts, ids(curriculum, 8)) == {"math": 3}
    with pytest.raises(ValueError, match="no quota"):
        ids(curriculum, 1, capability="code")


@settings(max_examples=80, deadline=None)
@given(
    kinds,
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(1, 8), min_size=1),
    st.integers(0, 30),
    st.lists(st.integers(0, 12), min_size=1, max_size=6),
    st.data(),
)
def test_proposals_are_distinct_allowed_and_as_many_as_there_are(spec, sizes, seed, asks, data):
    """Pools smaller than a batch, dry capabilities, all solved and all dead among them."""
    prompts = pool(**sizes)
    curriculum = build_curriculum(spec, prompts, seed=seed)
    everyone = [p.prompt_id for p in prompts]
    for step, ask in enumerate(asks):
        exclude = data.draw(st.sets(st.sampled_from(everyone)))
        capability = data.draw(st.sampled_from([None, *sorted(sizes)]))
        proposed = ids(curriculum, ask, exclude=exclude, capability=capability)
        eligible = {p.prompt_id for p in prompts if capability in (None, p.capability)} - exclude
        assert len(set(proposed)) == len(proposed) == min(ask, len(eligible))
        assert set(proposed) <= eligible
        for prompt_id in proposed:
            curriculum.observe(counted(prompt_id, data.draw(st.sampled_from([0, 4, 8])), step=step))


@settings(max_examples=40, deadline=None)
@given(kinds, st.integers(0, 50), st.data())
def test_quotas_hold_exactly_after_rejection(spec, seed, data):
    """Refills of one capability come from it and leave the others' shares alone."""
    prompts = pool(a=60, b=60, c=60)
    curriculum = build_curriculum(spec, prompts, seed=seed)
    kept = Counter()
    for step in range(4):
        batch = ids(curriculum, 9)
        share = by_capability(prompts, batch)
        seen = set(batch)
        for capability, wanted in share.items():
            rejected = data.draw(st.integers(0, wanted))
            refill = ids(curriculum, rejected, exclude=seen, capability=capability)
            assert by_capability(prompts, refill) == Counter(
                {capability: rejected} if rejected else {}
            )
            assert not set(refill) & seen
            seen |= set(refill)
            kept[capability] += wanted - rejected + len(refill)
        for prompt_id in seen:
            curriculum.observe(counted(prompt_id, 4, step=step))
    assert kept == {"a": 12, "b": 12, "c": 12}


def rounds(curriculum, steps, taken, *, first_step=0):
    """Propose, probe, observe and refill; what was proposed, whole, goes to `taken`."""
    for number, (ask, num_passed) in enumerate(steps):
        step = first_step + number
        probes = curriculum.to_probe(4)
        logprobs = {i: -1.0 - 0.1 * num_passed - int(i[:2], 16) / 50 for i in probes}
        curriculum.observe_likelihood(logprobs, step=step)
        proposals = curriculum.propose(ask, num_generations=8)
        go_on = []
        for p in proposals:
            passed = (num_passed + int(p.prompt_id[:2], 16)) % 9
            num = p.num_pilot or 8
            go_on.append(
                curriculum.continues(p.prompt_id, num_passed=min(passed, num), num_decided=num)
            )
            curriculum.observe(counted(p.prompt_id, passed, step=step))
        exclude = {p.prompt_id for p in proposals}
        refill = curriculum.propose(2, num_generations=8, exclude=exclude, capability="a")
        taken.append((probes, proposals, go_on, refill))
    return taken


@settings(max_examples=60, deadline=None)
@given(
    kinds,
    st.integers(0, 1000),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 8)), min_size=2, max_size=12),
    st.data(),
)
def test_saved_state_goes_on_exactly_and_equal_seeds_agree(spec, seed, steps, data):
    prompts = pool(a=13, b=7, c=5)
    tags = {p.prompt_id: n % 7 for n, p in enumerate(prompts)}
    stop = data.draw(st.integers(1, len(steps) - 1))

    def fresh(a_seed):
        return build_curriculum(spec, prompts, seed=a_seed, tags=tags)

    unbroken = fresh(seed)
    expected = rounds(unbroken, steps, [])
    assert repr(rounds(fresh(seed), steps, [])) == repr(expected)

    broken = fresh(seed)
    taken = rounds(broken, steps[:stop], [])
    # Scored groups that no proposal has looked at yet belong to the state.
    state = copied(broken.state_dict())
    rounds(broken, steps[stop:], [], first_step=stop)  # must not reach into the saved state
    restored = fresh(seed + 1)
    rounds(restored, steps[:1], [])  # what was there before must not shine through
    restored.load_state_dict(state)
    assert repr(rounds(restored, steps[stop:], taken, first_step=stop)) == repr(expected)
    assert repr(restored.state_dict()) == repr(unbroken.state_dict())
    assert repr(restored.metrics()) == repr(unbroken.metrics())


def copied(state):
    """A deep copy that keeps arrays apart from JSON values, as a file does."""
    if isinstance(state, np.ndarray):
        return state.copy()
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list) and any(isinstance(item, np.ndarray) for item in state):
        return [copied(item) for item in state]
    return json.loads(json.dumps(state))


@all_kinds
def test_state_goes_through_a_file(spec, tmp_path):
    prompts = pool(a=40, b=20)
    curriculum = build_curriculum(spec, prompts, seed=1)
    rounds(curriculum, [(9, 3), (9, 5)], [])
    write_arrays(tmp_path / "state.npz", curriculum.state_dict())
    restored = build_curriculum(spec, prompts, seed=2)
    restored.load_state_dict(read_arrays(tmp_path / "state.npz"))
    assert repr(rounds(restored, [(9, 1)] * 3, [])) == repr(rounds(curriculum, [(9, 1)] * 3, []))


@settings(max_examples=40, deadline=None)
@given(kinds, st.integers(0, 100), st.randoms())
def test_the_order_of_observations_changes_nothing(spec, seed, random):
    """As with more processes, or fewer."""
    prompts = pool(a=40, b=40)
    one = build_curriculum(spec, prompts, seed=seed)
    other = build_curriculum(spec, prompts, seed=seed)
    for step in range(5):
        batch = ids(one, 12)
        assert ids(other, 12) == batch
        groups = [counted(i, (step + int(i[:2], 16)) % 9, step=step) for i in batch]
        for g in groups:
            one.observe(g)
        random.shuffle(groups)
        for g in groups:
            other.observe(g)
    assert ids(one, 12) == ids(other, 12)
    assert repr(one.state_dict()) == repr(other.state_dict())


def test_another_seed_proposes_otherwise():
    prompts = pool(a=40)
    assert ids(adaptive(prompts, seed=0), 10) != ids(adaptive(prompts, seed=1), 10)


@all_kinds
def test_state_of_another_pool_or_kind_is_refused_and_the_difference_named(spec):
    state = build_curriculum(spec, pool(a=3), seed=0).state_dict()
    last = pool(a=4)[3].prompt_id
    with pytest.raises(ValueError, match=rf"1 prompts of this pool are new to it \({last} first"):
        build_curriculum(spec, pool(a=4), seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match="1 of its prompts are not in this pool"):
        build_curriculum(spec, pool(a=2), seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match="in another order"):
        build_curriculum(spec, pool(a=3)[::-1], seed=0).load_state_dict(state)
    other = SHIPPED["mopps"] if spec.kind != "mopps" else UNIFORM
    with pytest.raises(ValueError, match=f"of kind {spec.kind}"):
        build_curriculum(other, pool(a=3), seed=0).load_state_dict(state)


def test_state_of_other_tags_is_refused():
    prompts = pool(a=30)
    tags = {p.prompt_id: i for i, p in enumerate(prompts)}
    with pytest.raises(ValueError, match="difficulty tags changed"):
        adaptive(prompts).load_state_dict(adaptive(prompts, tags=tags).state_dict())


@all_kinds
def test_new_prompts_take_part_and_survive_a_restart(spec):
    old, new = pool(a=6, b=6), [prompt(i, "a", "new") for i in range(30)]
    curriculum = build_curriculum(spec, old, seed=0)
    rounds(curriculum, [(6, 4)], [])
    curriculum.add(new)
    fresh = {p.prompt_id for p in new}
    assert fresh & {i for _ in range(6) for i in ids(curriculum, 12)}
    again = build_curriculum(spec, old, seed=5)
    again.add(new)
    again.load_state_dict(curriculum.state_dict())
    assert repr(rounds(again, [(9, 1)] * 2, [])) == repr(rounds(curriculum, [(9, 1)] * 2, []))


@all_kinds
def test_a_dry_capability_leaves_its_places_to_the_others(spec):
    prompts = pool(a=2, b=30)
    batch = ids(build_curriculum(spec, prompts, seed=0), 10)
    assert by_capability(prompts, batch) == {"a": 2, "b": 8}


@all_kinds
@pytest.mark.parametrize("num_passed", [0, 8], ids=["all dead", "all solved"])
def test_a_pool_without_signal_still_fills_its_batches(spec, num_passed):
    curriculum = build_curriculum(spec, pool(a=12, b=12), seed=0)
    for step in range(12):
        proposals = curriculum.propose(8, num_generations=8)
        assert len(proposals) == 8
        for p in proposals:
            curriculum.observe(counted(p.prompt_id, num_passed, step=step))
    assert "filled" in {p.reason for p in proposals} or not isinstance(curriculum, Adaptive)


def test_undecided_groups_teach_nothing():
    prompts = pool(a=3)
    for spec in SHIPPED.values():
        curriculum = build_curriculum(spec, prompts, seed=0)
        before = repr(curriculum.state_dict())
        curriculum.observe(group(prompts[0].prompt_id, [None, None]))
        assert repr(curriculum.state_dict()) == before


@pytest.mark.parametrize("name", ["uniform", "dapo", "scalerl"])
def test_the_whole_pool_is_seen_before_anything_twice(name):
    prompts = pool(a=20)
    curriculum = build_curriculum(SHIPPED[name], prompts, seed=3)
    batches = [ids(curriculum, 7) for _ in range(3)]
    assert set().union(*batches) == {p.prompt_id for p in prompts}
    assert len(set(batches[0]) | set(batches[1])) == 14


def test_scalerl_retires_by_the_rate_of_all_rollouts():
    prompts = pool(a=6)
    curriculum = build_curriculum(SHIPPED["scalerl"], prompts, seed=0)
    solved, mixed = prompts[0].prompt_id, prompts[1].prompt_id
    for step, (one, other) in enumerate([(8, 8), (7, 5)]):  # 15 of 16, 13 of 16
        curriculum.observe(counted(solved, one, step=step))
        curriculum.observe(counted(mixed, other, step=step))
    proposals = curriculum.propose(6, num_generations=8)
    assert {p.prompt_id for p in proposals if p.reason == "filled"} == {solved}
    assert all(solved not in ids(curriculum, 5) for _ in range(10))


def test_difficulty_pools_weigh_by_the_latest_group_only():
    prompts = pool(a=300)
    curriculum = build_curriculum(SHIPPED["difficulty_pools"], prompts, seed=0)
    rate = {p.prompt_id: (0, 4, 8)[i % 3] for i, p in enumerate(prompts)}
    for p in prompts:
        curriculum.observe(counted(p.prompt_id, 4, step=0))
        curriculum.observe(counted(p.prompt_id, rate[p.prompt_id], step=1))
    drawn = Counter(rate[i] for _ in range(400) for i in ids(curriculum, 3))
    # Weights 0.2, 1, 0.2.
    assert drawn[4] / 1200 == pytest.approx(1 / 1.4, abs=0.05)
    assert drawn[0] / 1200 == pytest.approx(0.2 / 1.4, abs=0.04)


def test_mopps_follows_its_text():
    prompts = pool(a=1)
    curriculum = build_curriculum(SHIPPED["mopps"], prompts, seed=0)
    for step, num_passed in enumerate([6, 1]):
        curriculum.observe(counted(prompts[0].prompt_id, num_passed, step=step))
    decision = curriculum.propose(1, num_generations=8)[0].decision
    # alpha: 1 -> 0.5 + 0.5 + 6 -> 0.5 * 7 + 0.5 + 1; beta: 1 -> 0.5 + 0.5 + 2 -> 0.5 * 3 + 0.5 + 7
    assert (decision["alpha"], decision["beta"]) == (5.0, 9.0)


# The adaptive curriculum


@given(st.lists(st.integers(0, 8), max_size=30), st.floats(0.05, 0.95), st.floats(0.1, 20))
def test_posterior_is_the_closed_form_where_nothing_moves(passes, mean, strength):
    """One prompt without discount: Beta(kappa m + passes, kappa (1 - m) + fails)."""
    prompts = pool(a=2)
    curriculum = adaptive(
        prompts,
        discount=1.0,
        prior_pass_rate=mean,
        prior_strength=strength,
        shrinkage=1e9,  # the stratum's own groups count for nothing beside the prior
        probe=0,
    )
    before = curriculum.posterior(prompts[1].prompt_id)
    curriculum.observe(counted(prompts[0].prompt_id, 4, step=0))  # the global mean moves with it
    for step, num_passed in enumerate(passes):
        curriculum.observe(counted(prompts[1].prompt_id, num_passed, step=step))
    ids(curriculum, 1)
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
    ids(curriculum, 0)
    stranger = prompt(1_000_000 + len(curriculum.state_dict()["pool"]["order"]), "a", level)
    curriculum.add([stranger])
    return curriculum.posterior(stranger.prompt_id)


def test_older_groups_count_for_less():
    prompts = pool(a=4)
    curriculum = adaptive(prompts, discount=0.5, probe=0)
    for step, num_passed in enumerate([8, 0, 4]):
        curriculum.observe(counted(prompts[0].prompt_id, num_passed, step=step))
    ids(curriculum, 1)
    alpha, beta = curriculum.posterior(prompts[0].prompt_id)
    base_alpha, base_beta = prior_of(curriculum)
    assert alpha - base_alpha == pytest.approx(0.25 * 8 + 4)
    assert beta - base_beta == pytest.approx(0.5 * 8 + 4)


def test_a_dead_level_is_known_from_a_few_of_its_prompts():
    easy = [prompt(i, "a", "easy") for i in range(50)]
    dead = [prompt(i, "a", "dead") for i in range(50)]
    curriculum = adaptive(easy + dead, explore_min=0, explore_max=0, probe=0, temperature=0.05)
    for p in dead[:12]:
        curriculum.observe(counted(p.prompt_id, 0))
    for p in easy[:12]:
        curriculum.observe(counted(p.prompt_id, 4))
    chosen = set(ids(curriculum, 30))
    assert len(chosen & {p.prompt_id for p in easy}) >= 29
    for p in dead[12:]:  # and that it came back to life
        curriculum.observe(counted(p.prompt_id, 4, step=60))
    alpha, beta = prior_of(curriculum, "dead")
    assert alpha / (alpha + beta) > 0.4


def stepped(curriculum, rate_of, *, num_steps, batch=16, seed=0, logprob_of=None):
    """Let a policy that does not move answer; the share of groups with signal, per step."""
    rng = np.random.default_rng(seed)
    signals = []
    for step in range(num_steps):
        if logprob_of is not None:
            wanted = curriculum.to_probe(2 * batch)
            curriculum.observe_likelihood({i: logprob_of[i] for i in wanted}, step=step)
        signals.append([])
        for prompt_id in ids(curriculum, batch):
            scored = group(prompt_id, (rng.random(8) < rate_of[prompt_id]).tolist(), step)
            curriculum.observe(scored)
            signals[-1].append(scored.has_signal)
    return np.array(signals).mean(axis=1)


def mixed_pool(num=2000, alive=0.1, seed=0):
    """Prompts without levels: alive ones at 0.2 to 0.8, the others at 0 and 1."""
    rng = np.random.default_rng(seed)
    prompts = [prompt(i, "a") for i in range(num)]
    rates = np.where(rng.random(num) < alive, rng.uniform(0.2, 0.8, num), rng.integers(0, 2, num))
    return prompts, dict(zip((p.prompt_id for p in prompts), rates.tolist(), strict=True))


def test_it_finds_what_is_alive_and_comes_back_to_it():
    prompts, rate_of = mixed_pool()
    uniform = stepped(build_curriculum(UNIFORM, prompts, seed=0), rate_of, num_steps=40)
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
    chosen = ids(one, 200)
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
    assert good.to_probe(8)
    assert bad.metrics()["curriculum/a/probe_weight"] < 0.6
    assert bad.to_probe(8) == []
    assert adaptive(prompts, probe=0).to_probe(8) == []


def test_what_has_no_answer_to_score_is_not_asked_about_again():
    some, none = pool(a=100), pool(b=100)
    curriculum = adaptive(some + none)
    others = {p.prompt_id for p in none}
    asked: list[str] = []
    for step in range(12):
        ids = curriculum.to_probe(8)
        asked += [i for i in ids if i in others]
        curriculum.observe_likelihood({i: None if i in others else -1.0 for i in ids}, step=step)
    assert len(asked) == len(set(asked))
    # Six rounds of four places told that the capability has none: all places are the other's.
    assert len(asked) == 24
    again = adaptive(some + none)
    again.load_state_dict(curriculum.state_dict())
    ids = curriculum.to_probe(8)
    assert again.to_probe(8) == ids
    assert len(ids) == 8
    assert not others & set(ids)


def test_a_likelihood_that_is_none_is_refused():
    curriculum = adaptive(pool(a=2))
    for value in (math.nan, 0.5):
        with pytest.raises(ValueError, match="no log-probability"):
            curriculum.observe_likelihood({pool(a=2)[0].prompt_id: value}, step=0)


def test_solved_prompts_are_reviewed_and_unsolved_ones_wait_longer_each_time():
    prompts = pool(a=40)
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
            curriculum.observe(counted(p.prompt_id, passed, step=step))
    assert reasons["reviewed"] == pytest.approx(60, abs=12)
    waits = [np.diff(steps) for steps in retries.values() if len(steps) > 2]
    assert waits
    assert all(w[0] >= 4 and w[1] >= 8 for w in waits)
    metrics = curriculum.metrics()
    assert metrics["curriculum/a/solved"] == pytest.approx(15 / 40, abs=0.1)
    assert metrics["curriculum/a/unsolved"] == pytest.approx(15 / 40, abs=0.06)


def test_the_explored_share_follows_what_is_alive():
    def explored(rate):
        prompts = pool(a=3000)
        curriculum = adaptive(prompts, explore_min=0.02, explore_max=0.2, probe=0)
        reasons = Counter()
        for step in range(30):
            for p in curriculum.propose(20, num_generations=8):
                reasons[p.reason] += 1
                curriculum.observe(counted(p.prompt_id, rate, step=step))
        return reasons["explored"] / reasons.total()

    assert explored(4) == pytest.approx(0.2, abs=0.03)
    assert explored(0) < 0.06


def test_the_band_moves_to_harder_prompts_as_the_capability_is_mastered():
    prompts = pool(a=400)
    curriculum = adaptive(prompts, probe=0)
    centres = []
    for step in range(40):
        for p in curriculum.propose(10, num_generations=8):
            curriculum.observe(counted(p.prompt_id, 2 if step < 20 else 7, step=step))
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


def test_predictions_are_calibrated_on_a_policy_that_does_not_move():
    rng = np.random.default_rng(3)
    prompts = pool(a=400)
    rate_of = dict(zip((p.prompt_id for p in prompts), rng.beta(0.5, 0.7, 400), strict=True))
    curriculum = adaptive(prompts, probe=0)
    stepped(curriculum, rate_of, num_steps=150)
    ids(curriculum, 1)
    assert curriculum.metrics()["curriculum/error"] < 0.05
    bins = [b for b in curriculum.reliability() if b[2] > 500]
    assert len(bins) >= 4
    assert all(abs(predicted - observed) < 0.1 for predicted, observed, _ in bins)
