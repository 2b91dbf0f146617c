"""What rollouts are drawn for: pilots, continuations, fillers; every token has its account."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.curriculum import Proposal, Uniform, UniformSpec
from posttrain.errors import HealthStop
from posttrain.models import load_tokenizer
from posttrain.records import Prompt, RolloutGroup
from posttrain.rl.collect import Batch, check_health, collect_batch
from posttrain.rl.likelihood import MAX_ANSWER_TOKENS, answer_ids, score_references
from posttrain.rl.sampling import engine_place
from posttrain.rl.step_tables import (
    FATES,
    PURPOSES,
    curriculum_flow,
    flow_totals,
    group_columns,
    tokens_spent,
)
from posttrain.tables import read_table, write_groups
from tests.builders import (
    ScriptedEngine,
    make_prompt,
    make_sampling,
    side_by_side,
    two_capabilities,
)

REASONS = ("selected", "explored", "reviewed", "retried", "filled")


class Piloting(Uniform[UniformSpec]):
    """Uniform proposals with pilots of two; only a mixed pilot goes on, unless told otherwise."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        num_pilot: Callable[[int], int | None] = lambda n: 2,
        goes_on: Callable[[int, int], bool] = lambda passed, decided: 0 < passed < decided,
        reason: Callable[[int], Any] = lambda n: "selected",
    ) -> None:
        super().__init__(UniformSpec(kind="uniform"), prompts, seed=0)
        self._num_pilot, self._goes_on, self._reason = num_pilot, goes_on, reason
        self.observed: list[RolloutGroup] = []
        self.num_proposed = 0

    def propose(self, num_prompts: int, **where: Any) -> list[Proposal]:
        proposals = super().propose(num_prompts, **where)
        found: list[Proposal] = []
        for proposal in proposals:
            n, self.num_proposed = self.num_proposed, self.num_proposed + 1
            found.append(
                dataclasses.replace(
                    proposal,
                    num_pilot=self._num_pilot(n),
                    reason=self._reason(n),
                    decision={"score": n / 8},
                )
            )
        return found

    def continues(self, prompt_id: str, *, num_passed: int, num_decided: int) -> bool:
        return self._goes_on(num_passed, num_decided)

    def observe(self, group: RolloutGroup) -> None:
        self.observed.append(group)
        super().observe(group)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama4: Path) -> Any:
    return load_tokenizer(tiny_llama4)


def spend(
    tokenizer: Any,
    curriculum: Piloting,
    right: Callable[[Prompt], int],
    prompts: Sequence[Prompt] = tuple(two_capabilities(20)),
    **how: Any,
) -> tuple[Batch, ScriptedEngine]:
    engine = ScriptedEngine(tokenizer, prompts, right)
    by_id = {p.prompt_id: p for p in prompts}
    given = {"num_groups": 4, "max_refills": 1, **how}
    return collect_batch(curriculum, make_sampling(tokenizer, engine, by_id), **given), engine


def test_a_pilot_that_shows_promise_is_drawn_to_the_end(tokenizer: Any) -> None:
    """One right answer a call: of the pilot's two and of the rest's two, so two of four."""
    curriculum = Piloting(two_capabilities(20))
    batch, engine = spend(tokenizer, curriculum, lambda p: 1)
    assert batch.uses == ["trained"] * 4
    assert [(len(g.rollouts), g.num_passed) for g in batch.groups] == [(4, 2)] * 4
    assert [len(asked) for asked in engine.asked] == [4, 4]
    assert len(set(engine.seeds)) == 2
    assert curriculum.observed == batch.groups


def test_a_pilot_without_promise_is_stopped_observed_and_replaced(tokenizer: Any) -> None:
    curriculum = Piloting(two_capabilities(20))
    batch, engine = spend(tokenizer, curriculum, lambda p: int(p.capability == "a"))
    stopped = [g for g, u in zip(batch.groups, batch.uses, strict=True) if u == "stopped"]
    assert [len(g.rollouts) for g in stopped] == [2, 2]
    assert Counter(batch.uses) == {"trained": 2, "filler": 2, "stopped": 2}
    assert batch.is_capped
    assert curriculum.observed == batch.groups
    # Pilots of four, rest of the two with signal, pilots of the two replacements, no rest of them.
    assert [len(asked) for asked in engine.asked] == [4, 2, 2]


def test_a_pilot_of_which_nothing_was_decided_is_stopped(tokenizer: Any) -> None:
    """References that `choice` cannot read."""
    prompts = [dataclasses.replace(p, verifier="choice") for p in two_capabilities(20)]
    curriculum = Piloting(prompts, goes_on=lambda p, d: True)
    batch, engine = spend(tokenizer, curriculum, lambda p: 1, prompts, max_refills=0)
    assert [len(asked) for asked in engine.asked] == [4]
    assert all(g.num_decided == 0 for g in batch.groups)
    with pytest.raises(HealthStop, match="could not decide 8 of 8"):
        check_health(batch, 0, num_groups=4, steps_without_signal=1, most=9)


def test_a_run_ends_where_nothing_is_left_to_learn_or_to_ask(tokenizer: Any) -> None:
    batch, _ = spend(tokenizer, Piloting(two_capabilities(20)), lambda p: 0, max_refills=0)
    check_health(batch, 0, num_groups=4, steps_without_signal=8, most=9)
    with pytest.raises(HealthStop, match="no group had signal for 9 steps"):
        check_health(batch, 8, num_groups=4, steps_without_signal=9, most=9)
    with pytest.raises(HealthStop, match="4 prompts left for a batch of 5"):
        check_health(batch, 0, num_groups=5, steps_without_signal=1, most=9)


def test_a_pilot_that_fills_a_place_is_repeated_for_the_trainer_alone(tokenizer: Any) -> None:
    batch, _ = spend(tokenizer, Piloting(two_capabilities(20)), lambda p: 0, max_refills=0)
    assert [len(g.rollouts) for g in batch.groups] == [2] * 4
    assert [len(g.rollouts) for g in batch.training_groups] == [4] * 4
    assert all(g.rollouts[:2] == g.rollouts[2:] for g in batch.training_groups)
    tokens = sum(len(r.completion_ids) for g in batch.groups for r in g.rollouts)
    assert tokens_spent(batch)["generated"] == tokens


def test_a_whole_group_fills_a_place_before_a_pilot(tokenizer: Any) -> None:
    curriculum = Piloting(two_capabilities(20), num_pilot=lambda n: 2 if n < 4 else None)
    batch, _ = spend(tokenizer, curriculum, lambda p: 0)
    fillers = [g for g, u in zip(batch.groups, batch.uses, strict=True) if u == "filler"]
    assert [len(g.rollouts) for g in fillers] == [4] * 4
    assert batch.uses[:4] == ["stopped"] * 4


def test_sizes_that_differ_take_one_call(tokenizer: Any) -> None:
    curriculum = Piloting(
        two_capabilities(20), num_pilot=[3, None, 2, 1].__getitem__, goes_on=lambda p, d: True
    )
    batch, engine = spend(tokenizer, curriculum, lambda p: 1, max_refills=0)
    assert [len(asked) for asked in engine.asked] == [3 + 4 + 2 + 1, 1 + 2 + 3]
    assert [len(g.rollouts) for g in batch.groups] == [4] * 4
    assert [c["num_pilot"] for c in group_columns(batch)] == [3, None, 2, 1]


def test_no_refill_begins_where_there_is_enough_or_too_much_was_spent(tokenizer: Any) -> None:
    """Half of four places have signal; then three batches' worth are asked for at most."""

    def is_b(prompt: Prompt) -> int:
        return 2 if prompt.capability == "b" else 0

    whole: dict[str, Any] = {"num_pilot": lambda n: None}
    batch, engine = spend(
        tokenizer, Piloting(two_capabilities(20), **whole), is_b, refill_below=0.5
    )
    assert len(engine.asked) == 1
    assert Counter(batch.uses) == {"trained": 2, "filler": 2}
    assert not batch.is_capped, "half was asked for, half came"
    batch, engine = spend(
        tokenizer, Piloting(two_capabilities(20), **whole), is_b, refill_below=0.6
    )
    assert len(engine.asked) == 2
    batch, _ = spend(
        tokenizer,
        Piloting(two_capabilities(20), **whole),
        lambda p: 0,
        max_refills=9,
        max_rollouts=3.0,
    )
    assert batch.refill_rounds == [0] * 4 + [1] * 4 + [2] * 4


def test_of_more_than_there_are_places_the_most_mixed_are_trained_on(tokenizer: Any) -> None:
    """Half as many again are drawn; capabilities keep their shares of the places."""
    rights = {p.prompt_id: 1 + i % 2 for i, p in enumerate(two_capabilities(20))}
    batch, _ = spend(
        tokenizer,
        Piloting(two_capabilities(20), num_pilot=lambda n: None),
        lambda p: rights[p.prompt_id],
        num_groups=4,
        oversample=3.0,
        max_refills=0,
    )
    assert len(batch.groups) == 12
    trained = [i for i, use in enumerate(batch.uses) if use == "trained"]
    assert Counter(batch.proposals[i].capability for i in trained) == {"a": 2, "b": 2}
    for capability in "ab":
        mine = [i for i in range(12) if batch.proposals[i].capability == capability]
        best = sorted(abs(batch.groups[i].num_passed - 2) for i in mine)[:2]
        assert sorted(abs(batch.groups[i].num_passed - 2) for i in mine if i in trained) == best
    assert batch.uses.count("surplus") == 8


scripts = st.lists(st.integers(0, 4), min_size=40, max_size=40)


@settings(max_examples=60, deadline=None)
@given(
    scripts,
    st.lists(st.sampled_from([None, 1, 2, 3, 4]), min_size=1, max_size=5),
    st.lists(st.sampled_from(REASONS), min_size=1, max_size=5),
    st.integers(1, 10),
    st.integers(0, 3),
)
def test_the_accounts_sum_to_what_was_generated(
    tiny_llama4: Path,
    tmp_path_factory: pytest.TempPathFactory,
    rights: list[int],
    pilots: list[int | None],
    reasons: list[Any],
    num_groups: int,
    max_refills: int,
) -> None:
    """In the batch, and in the tables that are read back; against the engine's own count."""
    tokenizer = load_tokenizer(tiny_llama4)
    prompts = two_capabilities(20)
    script = {p.prompt_id: right for p, right in zip(prompts, rights, strict=True)}
    curriculum = Piloting(
        prompts,
        num_pilot=lambda n: pilots[n % len(pilots)],
        goes_on=lambda passed, decided: passed > 0,
        reason=lambda n: reasons[n % len(reasons)],
    )
    made: list[int] = []

    class Counting(ScriptedEngine):
        def generate(self, *arguments: Any, **options: Any) -> Any:
            found = super().generate(*arguments, **options)
            made.extend(len(c.token_ids) for of_one in found for c in of_one)
            return found

    by_id = {p.prompt_id: p for p in prompts}
    batch = collect_batch(
        curriculum,
        make_sampling(
            tokenizer, Counting(tokenizer, prompts, lambda p: script[p.prompt_id]), by_id
        ),
        num_groups=num_groups,
        max_refills=max_refills,
    )
    tokens = tokens_spent(batch)
    assert tokens["generated"] == sum(made)
    assert (
        sum(tokens[name] for name in PURPOSES) == sum(tokens[name] for name in FATES) == sum(made)
    )
    folder = tmp_path_factory.mktemp("rollouts")
    table = folder / "rollouts" / "step-000000.parquet"
    write_groups(table, batch.groups, by_id, columns=group_columns(batch))
    totals = flow_totals(curriculum_flow(folder))
    assert totals == {
        "tokens": sum(made),
        "scored": 0,
        "variants": 0,
        **{f"tokens_{name}": tokens[name] for name in (*PURPOSES, *FATES)},
    }
    for row in read_table(table):
        assert row["reason"] in REASONS
        assert row["decision"].keys() == {"score"}
    flow = curriculum_flow(folder)
    assert sum(row["proposed"] for row in flow) == len(batch.groups)
    assert sum(row[use] for row in flow for use in set(batch.uses)) == len(batch.groups)
    assert len(batch.training_groups) == num_groups
    assert {len(g.rollouts) for g in batch.training_groups} == {4}


def test_two_engines_and_one_lead_to_the_same_proposals(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given equal outcomes, whatever the processes: pilots, rests and refills of three steps."""
    prompts = two_capabilities(20)
    by_id = {p.prompt_id: p for p in prompts}
    systems = ["Be brief.", "Think."]

    def steps(place: Any) -> list[Any]:
        curriculum = Piloting(prompts)
        engine = ScriptedEngine(
            tokenizer, prompts, lambda p: int(p.reference[-1] in "13579"), systems
        )
        found: list[Any] = []
        for step in range(3):
            sampling = make_sampling(
                tokenizer, engine, by_id, place=place, step=step, systems=[*systems, None]
            )
            asked = [p.prompt_id for p in prompts[:7]]
            scored = score_references(asked, sampling, max_model_len=64)
            batch = collect_batch(curriculum, sampling, num_groups=5, max_refills=2)
            outcomes = [
                (g.prompt_id, g.system, g.num_passed, len(g.rollouts)) for g in batch.groups
            ]
            found.append(
                (scored.scored, batch.proposals, outcomes, batch.uses, batch.refill_rounds)
            )
        return found

    (alone,) = side_by_side(
        monkeypatch, [engine_place(rank=0, world_size=1, tensor_parallel_size=1)], steps
    )
    for num_processes, size in ((2, 1), (4, 2), (3, 1)):
        places = [
            engine_place(rank=r, world_size=num_processes, tensor_parallel_size=size)
            for r in range(num_processes)
        ]
        for found in side_by_side(monkeypatch, places, steps):
            assert found == alone
    assert any("stopped" in uses for *_, uses, _ in alone)


def test_a_system_instruction_is_drawn_per_step_and_prompt(tokenizer: Any) -> None:
    prompts = two_capabilities(20)
    by_id = {p.prompt_id: p for p in prompts}
    systems = ["Be brief.", "Think."]
    drawn: Counter[str | None] = Counter()
    for step in range(10):
        engine = ScriptedEngine(tokenizer, prompts, lambda p: 1, systems)
        sampling = make_sampling(tokenizer, engine, by_id, step=step, systems=[*systems, None])
        batch = collect_batch(Piloting(prompts), sampling, num_groups=8, max_refills=0)
        assert [g.system for g in batch.groups] == [
            sampling.system_of(g.prompt_id) for g in batch.groups
        ]
        drawn.update(g.system for g in batch.groups)
        probed = score_references([prompts[0].prompt_id], sampling, max_model_len=64)
        (prefix, _) = engine.scored[0]
        text = tokenizer.decode(prefix)
        system = sampling.system_of(prompts[0].prompt_id)
        assert all((one in text) == (one == system) for one in systems)
        assert probed.scored[0].num_tokens == len(prefix) + probed.scored[0].num_answer_tokens
    assert set(drawn) == {*systems, None}
    assert min(drawn.values()) >= 10


def test_what_the_policy_would_write_is_scored_and_nothing_else(tokenizer: Any) -> None:
    eot = tokenizer.eos_token_id
    ask = make_prompt("2+2")
    assert answer_ids(tokenizer, ask.messages, "4") == [
        *tokenizer.encode("4", add_special_tokens=False), eot
    ]  # fmt: skip
    assert answer_ids(tokenizer, ask.messages, " ") == []
    assert answer_ids(tokenizer, ask.messages, "4 5 " * MAX_ANSWER_TOKENS) == []
    prompts = [
        ask,
        make_prompt("write it", "print(4)", verifier="code"),
        make_prompt("say", "a word " * 40),
        make_prompt("long " * 30, "5"),
    ]
    engine = ScriptedEngine(tokenizer, prompts, lambda p: 1)
    sampling = make_sampling(tokenizer, engine, {p.prompt_id: p for p in prompts})
    found = score_references([p.prompt_id for p in prompts], sampling, max_model_len=40).scored
    assert len(engine.scored) == 1
    assert found[0].logprob == -2.0
    assert [math.isnan(one.logprob) for one in found] == [False, True, True, True]
    assert [one.num_tokens > 0 for one in found] == [True, False, False, False]


def test_the_scored_likelihood_is_the_chance_to_write_the_answer(tiny_llama4: Path) -> None:
    """Against transformers' own probabilities, token by token."""
    import torch
    from transformers import AutoModelForCausalLM

    from posttrain.engines.transformers import TransformersEngine
    from posttrain.models.policy import load_base, prompt_ids
    from posttrain.recipe.models import EngineSpec

    tokenizer = load_tokenizer(tiny_llama4)
    spec = EngineSpec(kind="transformers", max_model_len=64)
    engine = TransformersEngine(load_base(tiny_llama4, dtype="float32"), spec)
    prompts = [make_prompt(f"{i}+1", str(i + 1)) for i in range(3)]
    sampling = make_sampling(tokenizer, engine, {p.prompt_id: p for p in prompts})  # type: ignore[arg-type]
    found = score_references([p.prompt_id for p in prompts], sampling, max_model_len=64).scored
    model = AutoModelForCausalLM.from_pretrained(tiny_llama4, dtype=torch.float32)
    for prompt, one in zip(prompts, found, strict=True):
        ids = prompt_ids(tokenizer, prompt.messages)
        chance = 1.0
        for token in [*tokenizer.encode(prompt.reference, add_special_tokens=False), 4]:
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            chance *= float(logits.softmax(-1)[token])
            ids = [*ids, token]
        assert math.exp(one.logprob) == pytest.approx(chance, rel=1e-3)
