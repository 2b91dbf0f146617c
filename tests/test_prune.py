"""Pruning loses nothing, doubles nothing, and drops the easiest of each capability."""

from collections import Counter
from fractions import Fraction

import pytest
from builders import counted_group, data_recipe, make_sample
from hypothesis import given
from hypothesis import strategies as st

from posttrain.artefacts import DROPPED, PILOT, SAMPLES, VERDICTS
from posttrain.data import prompt_of
from posttrain.pipeline.stage import StageContext
from posttrain.pipeline.stages.prune import STAGE
from posttrain.prune import prune
from posttrain.recipe.schema import Prune
from posttrain.records import Sample, Verdict
from posttrain.tables import read_json, write_groups


def sample(number, capability="math"):
    messages = [
        {"role": "user", "content": f"question {number}"},
        {"role": "assistant", "content": "answer"},
    ]
    return Sample.make(messages=messages, capability=capability)  # pyright: ignore[reportArgumentType]


def verdict(of, score, reason="said so"):
    return Verdict(sample_id=of.sample_id, score=score, reason=reason, judge="j")


def ids(rows):
    return [row.sample_id for row in rows]


# A fifth of the samples is drawn as bad, as the data stage would quarantine it before pruning.
populations = st.lists(
    st.tuples(
        st.sampled_from(["math", "code", "chat"]),
        st.one_of(st.none(), st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])),
        st.sampled_from(["judged", "judged", "judged", "no verdict", "bad"]),
    ),
    max_size=60,
)


@given(populations, st.integers(0, 100), st.randoms(use_true_random=False))
def test_nothing_is_lost_or_doubled(population, percent, random):
    everything = [sample(i, capability) for i, (capability, _, _) in enumerate(population)]
    score = {s.sample_id: p[1] for s, p in zip(everything, population, strict=True)}
    quarantined = [s for s, p in zip(everything, population, strict=True) if p[2] == "bad"]
    samples = [s for s in everything if s not in quarantined]
    verdicts = [
        verdict(s, p[1]) for s, p in zip(everything, population, strict=True) if p[2] == "judged"
    ]
    random.shuffle(verdicts)
    result = prune(samples, verdicts, Prune(drop_easiest=percent / 100))

    out = [*ids(result.kept), *ids(result.dropped), *ids(result.unscored)]
    assert Counter(out + [s.sample_id for s in quarantined]) == Counter(
        s.sample_id for s in everything
    )
    judged = {v.sample_id for v in verdicts if v.score is not None}
    assert set(ids(result.unscored)) == {s.sample_id for s in samples} - judged
    order = [s.sample_id for s in samples]
    for rows in (result.kept, result.dropped, result.unscored):
        assert ids(rows) == sorted(ids(rows), key=order.index)
        for row in rows:
            assert row.score == (score[row.sample_id] if row.sample_id in judged else None)
    for capability in ("math", "code", "chat"):
        kept = [r for r in result.kept if r.capability == capability]
        dropped = [r for r in result.dropped if r.capability == capability]
        num_scored = len(kept) + len(dropped)
        assert len(dropped) == int(Fraction(percent, 100) * num_scored)
        assert max([r.score or 0.0 for r in dropped], default=0) <= min(
            [r.score or 0.0 for r in kept], default=1
        )
        assert sorted(r.rank or 0 for r in kept + dropped) == list(range(1, num_scored + 1))


def test_each_capability_keeps_its_own_hard_half():
    hard = [sample(i, "math") for i in range(4)]
    easy = [sample(i, "chat") for i in range(4)]
    verdicts = [verdict(s, 0.8 + i / 100) for i, s in enumerate(hard)]
    verdicts += [verdict(s, 0.1 + i / 100) for i, s in enumerate(easy)]
    result = prune(hard + easy, verdicts, Prune(drop_easiest=0.5))
    assert ids(result.kept) == [s.sample_id for s in hard[2:] + easy[2:]]
    assert result.cuts == pytest.approx({"math": 0.82, "chat": 0.12})


def test_reasons_name_score_rank_and_cut():
    samples = [sample(i) for i in range(4)]
    verdicts = [verdict(s, i / 4) for i, s in enumerate(samples)]
    result = prune(samples, verdicts, Prune(drop_easiest=0.5))
    assert result.dropped[1].reason == (
        "score 0.2500, rank 2 of 4 in math, easiest first: "
        "the easiest 2 are dropped, the cut is at 0.5000"
    )
    assert "rank 3 of 4" in result.kept[0].reason
    nothing = prune(samples, verdicts, Prune(drop_easiest=0))
    assert nothing.kept[0].reason.endswith("none are dropped")
    assert nothing.cuts == {}
    everything = prune(samples, verdicts, Prune(drop_easiest=1))
    assert (len(everything.dropped), everything.kept, everything.cuts) == (4, [], {})


def test_unscored_samples_keep_the_judges_reason():
    samples = [sample(0), sample(1)]
    result = prune(samples, [verdict(samples[0], None, "answer is empty")], Prune(drop_easiest=1))
    assert [row.reason for row in result.unscored] == [
        "unscored: answer is empty",
        "unscored: the judge gave no verdict",
    ]


def test_ties_are_broken_by_id_whatever_the_order():
    samples = [sample(i) for i in range(10)]
    verdicts = [verdict(s, 0.5) for s in samples]
    result = prune(samples, verdicts, Prune(drop_easiest=0.5))
    again = prune(samples[::-1], verdicts, Prune(drop_easiest=0.5))
    assert set(ids(result.dropped)) == set(ids(again.dropped))
    assert set(ids(result.dropped)) == set(sorted(s.sample_id for s in samples)[:5])


def test_a_share_means_its_decimal():
    samples = [sample(i) for i in range(100)]
    verdicts = [verdict(s, i / 100) for i, s in enumerate(samples)]
    assert len(prune(samples, verdicts, Prune(drop_easiest=0.29)).dropped) == 29


def test_data_that_does_not_belong_together_is_refused():
    a, b = sample(0), sample(1)
    for samples, verdicts, words in [
        ([a, a], [], "come twice"),
        ([a], [verdict(a, 0.1), verdict(a, 0.2)], "two verdicts"),
        ([a], [verdict(b, 0.1)], "no sample"),
        ([a], [verdict(a, 1.5)], "not in"),
        ([a], [verdict(a, float("nan"))], "not in"),
    ]:
        with pytest.raises(ValueError, match=words):
            prune(samples, verdicts, Prune())


@pytest.mark.parametrize(
    ("misjudges", "require_check", "num_dropped"),
    [(False, True, 20), (True, True, 0), (True, False, 20)],
    ids=["judge passes", "judge fails", "judge fails, and pruning is asked for all the same"],
)
def test_only_a_judge_that_passes_its_check_prunes(
    tmp_path, capsys, misjudges, require_check, num_dropped
):
    """The model fails number i of 40 in i of 40 attempts; the judge scores it so, or at random."""
    samples = [make_sample(f"question {i}") for i in range(40)]
    scores = [(i * 7 % 40 if misjudges else i) / 40 for i in range(40)]
    judged, data = tmp_path / "judge", tmp_path / "data"
    for folder in (judged, data, out := tmp_path / "out"):
        folder.mkdir()
    SAMPLES.write(data, samples)
    VERDICTS.write(judged, [verdict(s, score) for s, score in zip(samples, scores, strict=True)])
    groups = [counted_group(s.sample_id, 40 - i, num=40) for i, s in enumerate(samples)]
    prompts = {s.sample_id: prompt for s in samples if (prompt := prompt_of(s)) is not None}
    write_groups(judged / PILOT, groups, prompts)
    context = StageContext(
        stage="prune",
        key="",
        recipe=data_recipe(),
        recipe_path=tmp_path / "recipe.yaml",
        run_dir=tmp_path,
        seed=0,
        inputs={"data": data, "judge": judged},
        work_dir=tmp_path,
        out_dir=out,
    )

    counts = STAGE.run(context, Prune(require_check=require_check))
    assert counts["dropped"] == num_dropped
    summary = read_json(out / "summary.json")
    assert summary["earned"] is not misjudges
    refused = misjudges and require_check
    assert ("refusal" in summary) is refused
    assert ("sft.prune.require_check=false" in capsys.readouterr().err) is refused
    assert len(DROPPED.read(out)) == num_dropped
