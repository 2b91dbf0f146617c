"""Judges over an engine whose probabilities are known in closed form; the ledger under a kill."""

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from posttrain.engines import Completion
from posttrain.errors import RecipeError, SetupError
from posttrain.judge import (
    attempt_samples,
    check_judge,
    judge_identity,
    judge_samples,
    judge_summary,
)
from posttrain.judge.ask import JUDGES
from posttrain.judge.check import pilot_samples
from posttrain.judge.rubric import conversation, fill
from posttrain.prune import prune
from posttrain.recipe.judges import JudgeSpec, LikelihoodJudge, RubricJudge
from posttrain.recipe.schema import JudgeCheck, Prune
from posttrain.records import Outcome, Rollout, RolloutGroup, Sample

EOS = 3


class Letters:
    """A tokenizer of one token per character, and `^` glues itself to what stands before it."""

    eos_token_id = EOS

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = []
        for letter in text:
            if letter == "^" and ids:
                ids[-1] += 1_000_000
            else:
                ids.append(100 + ord(letter))
        return ids

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(i - 100) for i in ids if i != EOS)

    def apply_chat_template(self, messages, *, add_generation_prompt, tokenize=True, **_: Any):
        assert add_generation_prompt
        text = "".join(f"<{m['role']}>{m['content']}\n" for m in messages) + "<assistant>"
        return self.encode(text) if tokenize else text


class KnownEngine:
    """Log-probability of token t: -(t % 7) / 4, halved where the question is not empty."""

    policy_version = 5

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], list[int]]] = []
        self.poison = "\0"
        self.down = False

    def logprob(self, prefix: list[int], token: int) -> float:
        helped = "<user>\n<assistant>" not in Letters().decode(prefix)
        return -(token % 7) / (8 if helped else 4)

    def score(self, prefixes_N, continuations_N):
        texts = [Letters().decode(p) for p in prefixes_N]
        if self.down or any(self.poison in text for text in texts):
            raise SetupError("endpoint answered 500")
        self.asked += list(zip(prefixes_N, continuations_N, strict=True))
        return [
            [self.logprob(p, t) for t in c]
            for p, c in zip(prefixes_N, continuations_N, strict=True)
        ]

    def generate(self, prompts_P, request, *, on_done):
        answers = ["4", "5", "4"]
        completions = [
            Completion(
                token_ids=[*Letters().encode(a), EOS], logprobs=[-1.0, -0.1], finish_reason="stop"
            )
            for a in answers[: request.num_generations]
        ]
        for index in range(len(prompts_P)):
            on_done(index, completions)
        return [completions for _ in prompts_P]

    def sync_weights(self, tensors, policy_version) -> None:
        raise AssertionError

    def close(self) -> None:
        pass


def sample(question, answer="4", capability="math", **keys):
    return Sample.make(
        messages=[{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        capability=capability,
        **keys,
    )


def judge(samples, spec, tmp_path: Path, engine: Any = None, **keys):
    tokenizer: Any = Letters()
    engine = engine or KnownEngine()
    return judge_samples(
        samples,
        spec,
        engine,
        tokenizer,
        judge_id="j",
        ledger_path=tmp_path / "ledger.sqlite",
        **keys,
    )


def likelihood(**keys):
    return LikelihoodJudge(kind="answer_likelihood", **keys)


def rubric(**keys):
    labels = keys.pop("labels", {"1": 0.0, "2": 0.5, "3": 1.0})
    keys = {"template": "{question}", "min_label_mass": 0.0, **keys}
    return RubricJudge(kind="rubric", system="Grade.", labels=labels, **keys)


def test_surprise_is_the_mean_over_answer_and_end_of_turn(tmp_path):
    (verdict,) = judge([sample("2+2", "abc")], likelihood(scale_nats=0.5), tmp_path)
    ids = [*Letters().encode("abc"), EOS]
    nll = sum((i % 7) / 8 for i in ids) / 4
    assert verdict.score == pytest.approx(1 - math.exp(-nll / 0.5))
    assert verdict.distribution == {"nll_with": pytest.approx(nll), "num_tokens": 4.0}
    assert verdict.judge == "j"


@pytest.mark.parametrize("contrast", [0.25, 1.0])
def test_contrast_weighs_in_the_ratio_with_and_without_the_question(tmp_path, contrast):
    spec = likelihood(contrast=contrast, scale_nats=2.0)
    (verdict,) = judge([sample("2+2", "abc")], spec, tmp_path)
    nll = sum((i % 7) / 8 for i in [*Letters().encode("abc"), EOS]) / 4
    # The question halves every log-probability, so the ratio is one half whatever the answer.
    surprise = (1 - contrast) * nll + contrast * 2.0 * 0.5
    assert verdict.score == pytest.approx(1 - math.exp(-surprise / 2.0))
    assert verdict.distribution["nll_without"] == pytest.approx(2 * nll)


def test_without_contrast_the_engine_is_asked_once_per_sample(tmp_path):
    engine = KnownEngine()
    judge([sample("a"), sample("b")], likelihood(), tmp_path, engine)
    assert len(engine.asked) == 2


def test_what_cannot_be_scored_says_why(tmp_path):
    samples = [sample("x", ""), sample("y" * 50), sample("fine")]
    verdicts = judge(samples, likelihood(), tmp_path, max_model_len=40)
    assert [v.score is None for v in verdicts] == [True, True, False]
    assert verdicts[0].reason == "the answer is empty"
    assert verdicts[1].reason.endswith("do not fit max_model_len 40")


def test_one_place_stays_free_for_the_engine(tmp_path):
    needed = len("<user>q\n<assistant>") + 2
    for room, fits in [(needed, False), (needed + 1, True)]:
        (verdict,) = judge([sample("q")], likelihood(), tmp_path / str(room), max_model_len=room)
        assert (verdict.score is not None) is fits


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_number_that_is_none_is_no_score(tmp_path, value):
    engine = KnownEngine()
    engine.logprob = lambda prefix, token: value  # pyright: ignore[reportAttributeAccessIssue]
    for i, spec in enumerate([likelihood(), rubric()]):
        (verdict,) = judge([sample("q")], spec, tmp_path / str(i), engine)
        assert verdict.score is None
    json.dumps(verdict.distribution, allow_nan=False)


def test_certain_without_its_question_has_no_ratio(tmp_path):
    engine = KnownEngine()
    engine.logprob = lambda prefix, token: 0.0  # pyright: ignore[reportAttributeAccessIssue]
    (verdict,) = judge([sample("q")], likelihood(contrast=1.0), tmp_path, engine)
    assert verdict.score is None
    assert "no ratio" in verdict.reason


def test_rubric_score_is_the_expectation_over_the_labels(tmp_path):
    (verdict,) = judge([sample("2+2")], rubric(), tmp_path)
    p = {label: math.exp(-((100 + ord(label)) % 7) / 8) for label in "123"}
    mass = sum(p.values())
    assert verdict.score == pytest.approx((0.5 * p["2"] + 1.0 * p["3"]) / mass)
    assert verdict.distribution["label_mass"] == pytest.approx(mass)
    assert sum(verdict.distribution[label] for label in "123") == pytest.approx(1)


def test_too_little_label_mass_is_no_score(tmp_path):
    engine = KnownEngine()
    engine.logprob = lambda prefix, token: math.log(0.1)  # pyright: ignore[reportAttributeAccessIssue]
    (low,) = judge([sample("q")], rubric(min_label_mass=0.31), tmp_path / "a", engine)
    (enough,) = judge([sample("q")], rubric(min_label_mass=0.29), tmp_path / "b", engine)
    assert low.score is None
    assert low.distribution == {"label_mass": pytest.approx(0.3)}
    assert "below 0.31" in low.reason
    assert enough.score == pytest.approx(0.5)


def test_labels_of_several_tokens_are_named(tmp_path):
    with pytest.raises(RecipeError, match=r"'10' \(2 on its own\)"):
        judge([sample("q")], rubric(labels={"1": 0.0, "10": 1.0}), tmp_path)
    # One token on its own, yet it merges with the end of the prompt.
    with pytest.raises(RecipeError, match=r"'\^' \(1 on its own\)"):
        judge([sample("q")], rubric(labels={"1": 0.0, "^": 1.0}), tmp_path)


def test_only_declared_placeholders_are_filled_and_only_once():
    spec = rubric(template="Q {question} A {answer} {level} {{answer}}")
    asked = conversation(sample("what is {answer} or {question}?", "{question}"), spec)
    assert asked[1]["content"] == (
        "Q what is {answer} or {question}? A {question} {level} {{question}}"
    )
    assert fill("{question}\\1", {"question": r"\g<0>"}) == r"\g<0>\1"


def test_several_turns_are_named_by_role():
    long = Sample.make(
        messages=[
            {"role": "system", "content": "s"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d"},
        ],
        capability="chat",
    )
    assert conversation(long, rubric())[1]["content"] == "user: a\n\nassistant: b\n\nuser: c"


def test_what_the_ledger_has_is_not_asked_again(tmp_path):
    samples = [sample(str(i), str(i)) for i in range(10)]
    engine = KnownEngine()
    first = judge(samples[:6], likelihood(batch_size=4), tmp_path, engine)
    assert len(engine.asked) == 6
    second = judge(samples, likelihood(batch_size=4), tmp_path, engine)
    assert len(engine.asked) == 10
    assert second[:6] == first
    assert [v.sample_id for v in second] == [s.sample_id for s in samples]
    assert judge(samples, likelihood(), tmp_path / "fresh") == second


def test_judges_share_a_ledger_without_mixing(tmp_path):
    engine, tokenizer = KnownEngine(), Letters()
    for name, spec in [("a", likelihood()), ("b", likelihood(scale_nats=9.0)), ("a", likelihood())]:
        arguments: Any = ([sample("q")], spec, engine, tokenizer)
        (verdict,) = judge_samples(*arguments, judge_id=name, ledger_path=tmp_path / "x" / "ledger")
        assert verdict.judge == name
    assert len(engine.asked) == 2


def test_identity_is_all_that_a_verdict_depends_on():
    base = judge_identity(likelihood(), "rev")
    assert judge_identity(likelihood(batch_size=3), "rev") == base
    assert judge_identity(likelihood(scale_nats=2.0), "rev") != base
    assert judge_identity(likelihood(), "other") != base
    assert judge_identity(rubric(), "rev") != judge_identity(rubric(template="x{question}"), "rev")


def test_a_sample_the_engine_fails_on_is_kept_apart_and_asked_again(tmp_path):
    samples = [sample(q) for q in ("a", "POISON", "b", "c")]
    engine = KnownEngine()
    engine.poison = "POISON"
    verdicts = judge(samples, likelihood(), tmp_path, engine)
    assert [v.score is None for v in verdicts] == [False, True, False, False]
    assert verdicts[1].reason == "the engine failed: endpoint answered 500"
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        assert connection.execute("SELECT reason FROM verdicts WHERE failed").fetchall() == [
            (verdicts[1].reason,)
        ]
    engine.poison = "\0"
    engine.asked.clear()
    again = judge(samples, likelihood(), tmp_path, engine)
    assert len(engine.asked) == 1
    assert again[1].score is not None
    assert again[0] == verdicts[0]


def test_an_engine_that_is_gone_stops_the_stage_and_leaves_what_was_paid_for(tmp_path):
    samples = [sample(str(i)) for i in range(20)]
    engine = KnownEngine()
    judge(samples[:5], likelihood(), tmp_path, engine)
    engine.down = True
    with pytest.raises(SetupError, match="500"):
        judge(samples, likelihood(batch_size=4), tmp_path, engine)
    engine.down = False
    engine.asked.clear()
    judge(samples, likelihood(), tmp_path, engine)
    assert len(engine.asked) == 15


def kill_samples():
    return [sample(str(i), str(i)) for i in range(20)]


def test_a_killed_run_asks_again_only_what_was_in_flight(tmp_path):
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "import test_judge as t;"
        "t.judge(t.kill_samples(), t.likelihood(batch_size=4), Path(sys.argv[2]))"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / "broken")],
        env={**os.environ, "POSTTRAIN_KILL_AT": "judge.after_batch:3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    engine = KnownEngine()
    resumed = judge(kill_samples(), likelihood(batch_size=4), tmp_path / "broken", engine)
    assert len(engine.asked) == 8  # three batches of four had landed
    assert resumed == judge(kill_samples(), likelihood(), tmp_path / "whole")


def test_pilot_tries_verifiable_samples_that_fit_and_keeps_their_ids():
    samples = [sample(str(i), verifier="exact", reference="4") for i in range(3)]
    samples.append(sample("no verifier"))
    engine: Any = KnownEngine()
    tokenizer: Any = Letters()
    samples.append(sample("long " * 500, verifier="exact", reference="4"))

    def pilot(num_samples: int) -> list[RolloutGroup]:
        spec = JudgeCheck(num_samples=num_samples, num_generations=3)
        return attempt_samples(samples, engine, tokenizer, spec, max_model_len=1000, seed=0)

    groups = pilot(8)
    assert {g.prompt_id for g in groups} == {s.sample_id for s in samples[:3]}
    assert all((g.num_passed, g.num_decided, g.policy_version) == (2, 3, 5) for g in groups)
    assert pilot(0) == []


def test_pilot_takes_capabilities_in_turn_and_follows_its_seed():
    many = [sample(f"m{i}", verifier="exact", reference="4") for i in range(50)]
    few = [sample(f"c{i}", capability="code", verifier="exact", reference="4") for i in range(3)]
    chosen = pilot_samples(many + few, 10, seed=1)
    assert [s.capability for s in chosen].count("code") == 3
    assert len(chosen) == 10
    assert pilot_samples(many + few, 10, seed=1) == chosen
    assert pilot_samples(many + few, 10, seed=2) != chosen


def measured(of, num_passed, num=10):
    rollouts = tuple(
        Rollout(
            completion_ids=[1],
            logprobs=[-1.0],
            text="",
            finish_reason="stop",
            outcome=Outcome(passed=i < num_passed, score=0.0, why=""),
        )
        for i in range(num)
    )
    return RolloutGroup(prompt_id=of.sample_id, step=0, policy_version=0, rollouts=rollouts)


def summary_of(samples, scores, passes, tmp_path):
    verdicts = judge(samples, likelihood(), tmp_path)
    verdicts = [
        type(v)(sample_id=v.sample_id, score=score, reason="", judge="j")
        for v, score in zip(verdicts, scores, strict=True)
    ]
    groups = [measured(s, p) for s, p in zip(samples, passes, strict=True)]
    check = check_judge(samples, verdicts, groups)
    summary = judge_summary(samples, verdicts, check, prune(samples, verdicts, Prune()))
    json.dumps(summary, allow_nan=False)
    return summary


def test_summary_says_whether_the_judge_earned_its_right(tmp_path):
    samples = [sample(str(i)) for i in range(40)]
    scores = [i / 40 for i in range(40)]
    good = summary_of(samples, scores, [10 - i // 4 for i in range(40)], tmp_path)
    assert good["earned"] is True
    assert good["verdict"].startswith("The judge passes its check: ")
    assert good["spearman"]["within"]["low"] > 0.9
    assert good["capabilities"]["math"]["num_dropped"] == 20
    assert good["capabilities"]["math"]["cut"] == 0.5
    assert good["capabilities"]["math"]["score_quantiles"]["0.5"] == pytest.approx(39 / 80)
    backwards = summary_of(samples, scores, [i // 4 for i in range(40)], tmp_path)
    assert backwards["earned"] is False
    assert "hard samples as easy" in backwards["verdict"]
    chance = summary_of(samples, scores, [(i * 7) % 11 for i in range(40)], tmp_path)
    assert chance["earned"] is False
    assert "contains 0" in chance["verdict"]


def test_a_few_samples_in_order_earn_nothing(tmp_path):
    for num in (2, 3, 9):
        few = [sample(str(i)) for i in range(num)]
        scores, passes = [i / num for i in range(num)], list(range(10, 10 - num, -1))
        summary = summary_of(few, scores, passes, tmp_path)
        assert summary["earned"] is None
        assert (
            f"{num} samples, and the check needs 10. Raise sft.pilot.num_samples by {10 - num}"
            in (summary["verdict"])
        )
        within = summary["spearman"]["within"]
        assert within["mean"] == pytest.approx(1.0)
        assert within["low"] < 1.0
    ten = [sample(str(i)) for i in range(10)]
    summary = summary_of(ten, [i / 10 for i in range(10)], list(range(10, 0, -1)), tmp_path)
    assert summary["earned"] is True


def test_capabilities_of_two_samples_compare_little(tmp_path):
    """Ten samples in order, and yet one chance in 32."""
    pairs = [sample(f"{c}{i}", capability=c) for c in "abcde" for i in range(2)]
    summary = summary_of(pairs, [0.1, 0.9] * 5, [9, 1] * 5, tmp_path)
    assert summary["earned"] is None
    assert "measured 10 samples, and the check needs 14" in summary["verdict"]
    assert summary["spearman"]["within"]["mean"] == pytest.approx(1.0)


def test_a_harder_capability_alone_does_not_earn_it(tmp_path):
    samples = [sample(f"e{i}") for i in range(33)] + [
        sample(f"h{i}", capability="code") for i in range(33)
    ]
    scores = [0.1 + i / 1000 for i in range(33)] + [0.8 + i / 1000 for i in range(33)]
    passes = [9 - (i * 7) % 3 for i in range(33)] + [2 - (i * 7) % 3 for i in range(33)]
    summary = summary_of(samples, scores, passes, tmp_path)
    assert summary["spearman"]["overall"]["low"] > 0.5
    assert summary["earned"] is False
    assert set(summary["spearman"]["capabilities"]) == {"math", "code"}


def test_summary_without_a_measurement_says_so(tmp_path):
    samples = [sample("a"), sample("b")]
    nothing = summary_of(samples, [None, None], [1, 2], tmp_path)
    assert nothing["earned"] is None
    assert "not checked" in nothing["verdict"]
    assert sum(nothing["unscored_reasons"].values()) == 2
    flat = summary_of(samples, [0.5, 0.5], [1, 2], tmp_path)
    assert flat["earned"] is None
    assert flat["spearman"]["overall"]["mean"] is None


def test_every_kind_of_judge_in_the_recipe_has_its_function():
    kinds = {
        get_args(spec.model_fields["kind"].annotation)[0]
        for spec in get_args(get_args(JudgeSpec)[0])
    }
    assert set(JUDGES) == kinds
