"""What every curriculum keeps: quotas, queues, bad input, a future fixed by seed and groups."""

import json
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.curriculum import Adaptive, CurriculumSpec, UniformSpec, build_curriculum
from posttrain.curriculum.pool import Quotas, shares_of, take_from_richest
from posttrain.errors import RecipeError
from posttrain.recipe import RecipeProblems, load_curriculum
from posttrain.tables import read_arrays, write_arrays
from tests.builders import (
    adaptive,
    by_capability,
    counted_group,
    make_group,
    numbered_prompt,
    prompt_pool,
    proposed_ids,
)

SHIPPED = {
    path.stem: load_curriculum(path)
    for path in sorted((Path(__file__).parent.parent / "curricula").glob("*.yaml"))
}
UNIFORM = UniformSpec(kind="uniform")


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
    prompts = prompt_pool(math=2, code=2)
    for quotas, words in [
        ({"math": 1, "code": 1, "chat": 1}, "quotas name chat"),
        ({"math": 1}, "quotas lack code"),
        ({"math": 0, "code": 0}, "all 0"),
    ]:
        with pytest.raises(RecipeError, match=words):
            adaptive(prompts, quotas=quotas)


def test_an_unknown_kind_is_an_error_with_the_nearest_one(tmp_path):
    class AdaptveSpec(CurriculumSpec):
        kind: Literal["adaptve"] = "adaptve"

    with pytest.raises(ValueError, match=r"kind adaptve \(did you mean adaptive\?\): one of unif"):
        build_curriculum(AdaptveSpec(), prompt_pool(a=2), seed=0)
    file = tmp_path / "own.yaml"
    file.write_text("kind: mops\n")
    with pytest.raises(RecipeProblems, match="did you mean 'mopps'"):
        load_curriculum(file)


@pytest.mark.parametrize(
    "key",
    ["tag_bins", "probe_memory", "stratum_memory", "hard_centre", "width", "pilot_saves",
     "continue_above"],
)  # fmt: skip
def test_keys_that_became_constants_are_refused_by_name(tmp_path, key):
    file = tmp_path / "own.yaml"
    file.write_text(f"kind: adaptive\n{key}: 1\n")
    with pytest.raises(RecipeProblems, match=f"own.yaml:2: {key}: unknown key"):
        load_curriculum(file)


@all_kinds
def test_an_empty_pool_duplicates_and_strangers_are_named(spec):
    with pytest.raises(RecipeError, match="no prompts"):
        build_curriculum(spec, [], seed=0)
    twice = [numbered_prompt(0), numbered_prompt(1), numbered_prompt(1)]
    with pytest.raises(ValueError, match=f"1 prompts .* twice, {twice[1].prompt_id}"):
        build_curriculum(spec, twice, seed=0)
    curriculum = build_curriculum(spec, prompt_pool(a=2), seed=0)
    with pytest.raises(ValueError, match="prompt nobody is not in this curriculum"):
        curriculum.observe(make_group([True], prompt_id="nobody"))
    with pytest.raises(ValueError, match="num_prompts"):
        proposed_ids(curriculum, -1)
    with pytest.raises(ValueError, match="'b' has no quota; there are a"):
        proposed_ids(curriculum, 1, capability="b")
    with pytest.raises(ValueError, match="'b' has no quota"):
        curriculum.add(prompt_pool(b=1))
    with pytest.raises(ValueError, match="twice"):
        curriculum.add(prompt_pool(a=1))


def test_zero_share_leaves_a_capability_out_even_when_the_others_run_dry():
    prompts = prompt_pool(math=3, code=9)
    curriculum = adaptive(prompts, quotas={"math": 1, "code": 0})
    assert by_capability(prompts, proposed_ids(curriculum, 8)) == {"math": 3}
    with pytest.raises(ValueError, match="no quota"):
        proposed_ids(curriculum, 1, capability="code")


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
    prompts = prompt_pool(**sizes)
    curriculum = build_curriculum(spec, prompts, seed=seed)
    everyone = [p.prompt_id for p in prompts]
    for step, ask in enumerate(asks):
        exclude = data.draw(st.sets(st.sampled_from(everyone)))
        capability = data.draw(st.sampled_from([None, *sorted(sizes)]))
        proposed = proposed_ids(curriculum, ask, exclude=exclude, capability=capability)
        eligible = {p.prompt_id for p in prompts if capability in (None, p.capability)} - exclude
        assert len(set(proposed)) == len(proposed) == min(ask, len(eligible))
        assert set(proposed) <= eligible
        for prompt_id in proposed:
            curriculum.observe(
                counted_group(prompt_id, data.draw(st.sampled_from([0, 4, 8])), step=step)
            )


@settings(max_examples=40, deadline=None)
@given(kinds, st.integers(0, 50), st.data())
def test_quotas_hold_exactly_after_rejection(spec, seed, data):
    """Refills of one capability come from it and leave the others' shares alone."""
    prompts = prompt_pool(a=60, b=60, c=60)
    curriculum = build_curriculum(spec, prompts, seed=seed)
    kept = Counter()
    for step in range(4):
        batch = proposed_ids(curriculum, 9)
        share = by_capability(prompts, batch)
        seen = set(batch)
        for capability, wanted in share.items():
            rejected = data.draw(st.integers(0, wanted))
            refill = proposed_ids(curriculum, rejected, exclude=seen, capability=capability)
            assert by_capability(prompts, refill) == Counter(
                {capability: rejected} if rejected else {}
            )
            assert not set(refill) & seen
            seen |= set(refill)
            kept[capability] += wanted - rejected + len(refill)
        for prompt_id in seen:
            curriculum.observe(counted_group(prompt_id, 4, step=step))
    assert kept == {"a": 12, "b": 12, "c": 12}


def rounds(curriculum, steps, taken, *, first_step=0):
    """Propose, probe, observe and refill; what was proposed, whole, goes to `taken`."""
    for number, (ask, num_passed) in enumerate(steps):
        step = first_step + number
        probes = curriculum.prompts_to_score(1)
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
            curriculum.observe(counted_group(p.prompt_id, passed, step=step))
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
    prompts = prompt_pool(a=13, b=7, c=5)
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
    prompts = prompt_pool(a=40, b=20)
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
    prompts = prompt_pool(a=40, b=40)
    one = build_curriculum(spec, prompts, seed=seed)
    other = build_curriculum(spec, prompts, seed=seed)
    for step in range(5):
        batch = proposed_ids(one, 12)
        assert proposed_ids(other, 12) == batch
        groups = [counted_group(i, (step + int(i[:2], 16)) % 9, step=step) for i in batch]
        for g in groups:
            one.observe(g)
        random.shuffle(groups)
        for g in groups:
            other.observe(g)
    assert proposed_ids(one, 12) == proposed_ids(other, 12)
    assert repr(one.state_dict()) == repr(other.state_dict())


def test_another_seed_proposes_otherwise():
    prompts = prompt_pool(a=40)
    assert proposed_ids(adaptive(prompts, seed=0), 10) != proposed_ids(
        adaptive(prompts, seed=1), 10
    )


@all_kinds
def test_state_of_another_pool_or_kind_is_refused_and_the_difference_named(spec):
    state = build_curriculum(spec, prompt_pool(a=3), seed=0).state_dict()
    last = prompt_pool(a=4)[3].prompt_id
    with pytest.raises(ValueError, match=rf"1 prompts of this pool are new to it \({last} first"):
        build_curriculum(spec, prompt_pool(a=4), seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match="1 of its prompts are not in this pool"):
        build_curriculum(spec, prompt_pool(a=2), seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match="in another order"):
        build_curriculum(spec, prompt_pool(a=3)[::-1], seed=0).load_state_dict(state)
    other = SHIPPED["mopps"] if spec.kind != "mopps" else UNIFORM
    with pytest.raises(ValueError, match=f"of kind {spec.kind}"):
        build_curriculum(other, prompt_pool(a=3), seed=0).load_state_dict(state)


def test_state_of_other_tags_is_refused():
    prompts = prompt_pool(a=30)
    tags = {p.prompt_id: i for i, p in enumerate(prompts)}
    with pytest.raises(ValueError, match="difficulty tags changed"):
        adaptive(prompts).load_state_dict(adaptive(prompts, tags=tags).state_dict())


@all_kinds
def test_new_prompts_take_part_and_survive_a_restart(spec):
    old, new = prompt_pool(a=6, b=6), [numbered_prompt(i, "a", "new") for i in range(30)]
    curriculum = build_curriculum(spec, old, seed=0)
    rounds(curriculum, [(6, 4)], [])
    curriculum.add(new)
    fresh = {p.prompt_id for p in new}
    assert fresh & {i for _ in range(6) for i in proposed_ids(curriculum, 12)}
    again = build_curriculum(spec, old, seed=5)
    again.add(new)
    again.load_state_dict(curriculum.state_dict())
    assert repr(rounds(again, [(9, 1)] * 2, [])) == repr(rounds(curriculum, [(9, 1)] * 2, []))


@all_kinds
def test_a_dry_capability_leaves_its_places_to_the_others(spec):
    prompts = prompt_pool(a=2, b=30)
    batch = proposed_ids(build_curriculum(spec, prompts, seed=0), 10)
    assert by_capability(prompts, batch) == {"a": 2, "b": 8}


@all_kinds
@pytest.mark.parametrize("num_passed", [0, 8], ids=["all dead", "all solved"])
def test_a_pool_without_signal_still_fills_its_batches(spec, num_passed):
    curriculum = build_curriculum(spec, prompt_pool(a=12, b=12), seed=0)
    for step in range(12):
        proposals = curriculum.propose(8, num_generations=8)
        assert len(proposals) == 8
        for p in proposals:
            curriculum.observe(counted_group(p.prompt_id, num_passed, step=step))
    assert "filled" in {p.reason for p in proposals} or not isinstance(curriculum, Adaptive)


def test_undecided_groups_teach_nothing():
    prompts = prompt_pool(a=3)
    for spec in SHIPPED.values():
        told, other = (build_curriculum(spec, prompts, seed=0) for _ in range(2))
        told.observe(make_group([None, None], prompt_id=prompts[0].prompt_id))
        if isinstance(told, Adaptive) and isinstance(other, Adaptive):
            assert proposed_ids(told, 0) == proposed_ids(other, 0) == []
            for one in prompts:
                assert told.posterior(one.prompt_id) == other.posterior(one.prompt_id)
        else:
            assert repr(told.state_dict()) == repr(other.state_dict())


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(0, 150))
def test_places_of_a_dry_capability_come_take_from_richest(left, num):
    given_C = take_from_richest(np.array(left), num)
    assert given_C.sum() == min(num, sum(left))
    assert (given_C >= 0).all()
    kept = np.array(left) - given_C
    assert (kept >= 0).all()
    # Nobody gives while another who has more than one above him keeps it.
    assert all(kept.max() - k <= 1 for k, g in zip(kept, given_C, strict=True) if g)


@pytest.mark.parametrize("name", ["adaptive", "adaptive_no_probe", "uniform", "mopps"])
def test_prompts_that_nobody_can_verify_do_not_pile_up(name):
    """One in a hundred is never decided: not many more of a batch, whatever is scored."""
    prompts = prompt_pool(a=1500, b=1500)
    rng = np.random.default_rng(0)
    rate_of = dict(zip((p.prompt_id for p in prompts), rng.random(3000).tolist(), strict=True))
    lost = {p.prompt_id for i, p in enumerate(prompts) if i % 100 == 0}
    curriculum = build_curriculum(SHIPPED[name], prompts, seed=0)
    num_lost = []
    for step in range(40):
        asked = curriculum.prompts_to_score(16)
        curriculum.observe_likelihood(dict.fromkeys(asked), step=step)
        batch = proposed_ids(curriculum, 64)
        num_lost.append(len(lost.intersection(batch)))
        for prompt_id in batch:
            passes = rng.random(8) < rate_of[prompt_id]
            known = [None] * 8 if prompt_id in lost else passes.tolist()
            curriculum.observe(make_group(known, prompt_id=prompt_id, step=step))
    assert np.mean(num_lost[20:]) < 0.03 * 64


@pytest.mark.parametrize("name", ["uniform", "dapo", "scalerl"])
def test_the_whole_pool_is_seen_before_anything_twice(name):
    prompts = prompt_pool(a=20)
    curriculum = build_curriculum(SHIPPED[name], prompts, seed=3)
    batches = [proposed_ids(curriculum, 7) for _ in range(3)]
    assert set().union(*batches) == {p.prompt_id for p in prompts}
    assert len(set(batches[0]) | set(batches[1])) == 14


def test_scalerl_retires_by_the_rate_of_all_rollouts():
    prompts = prompt_pool(a=6)
    curriculum = build_curriculum(SHIPPED["scalerl"], prompts, seed=0)
    solved, mixed = prompts[0].prompt_id, prompts[1].prompt_id
    for step, (one, other) in enumerate([(8, 8), (7, 5)]):  # 15 of 16, 13 of 16
        curriculum.observe(counted_group(solved, one, step=step))
        curriculum.observe(counted_group(mixed, other, step=step))
    proposals = curriculum.propose(6, num_generations=8)
    assert {p.prompt_id for p in proposals if p.reason == "filled"} == {solved}
    assert all(solved not in proposed_ids(curriculum, 5) for _ in range(10))


def test_difficulty_pools_weigh_by_the_latest_group_only():
    prompts = prompt_pool(a=300)
    curriculum = build_curriculum(SHIPPED["difficulty_pools"], prompts, seed=0)
    rate = {p.prompt_id: (0, 4, 8)[i % 3] for i, p in enumerate(prompts)}
    for p in prompts:
        curriculum.observe(counted_group(p.prompt_id, 4, step=0))
        curriculum.observe(counted_group(p.prompt_id, rate[p.prompt_id], step=1))
    drawn = Counter(rate[i] for _ in range(400) for i in proposed_ids(curriculum, 3))
    # Weights 0.2, 1, 0.2.
    assert drawn[4] / 1200 == pytest.approx(1 / 1.4, abs=0.05)
    assert drawn[0] / 1200 == pytest.approx(0.2 / 1.4, abs=0.04)


def test_mopps_follows_its_text():
    prompts = prompt_pool(a=1)
    curriculum = build_curriculum(SHIPPED["mopps"], prompts, seed=0)
    for step, num_passed in enumerate([6, 1]):
        curriculum.observe(counted_group(prompts[0].prompt_id, num_passed, step=step))
    decision = curriculum.propose(1, num_generations=8)[0].decision
    # alpha: 1 -> 0.5 + 0.5 + 6 -> 0.5 * 7 + 0.5 + 1; beta: 1 -> 0.5 + 0.5 + 2 -> 0.5 * 3 + 0.5 + 7
    assert (decision["alpha"], decision["beta"]) == (5.0, 9.0)
