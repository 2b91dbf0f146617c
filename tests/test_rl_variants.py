"""Prompts that the policy writes: what is asked, what holds, and how often agreement is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data import question_hashes
from posttrain.engines import Completion, SamplingRequest
from posttrain.models import load_tokenizer
from posttrain.models.policy import prompt_ids
from posttrain.recipe.schema import Variants
from posttrain.records import Prompt, RolloutGroup
from posttrain.rl.sampling import Sampling, engine_place
from posttrain.rl.variants import Variant, arithmetic_truth, false_positives, write_variants
from tests.builders import make_group, make_prompt, side_by_side

SPEC = Variants(num_answers=8, instruction="Harder: {question}")


class TextEngine:
    """Answers each conversation, known by its last user turn, with texts in turn."""

    policy_version = 0

    def __init__(self, tokenizer: Any, texts: Callable[[str], Sequence[str]]) -> None:
        self._tokenizer = tokenizer
        self._texts = texts
        self.asked: list[str] = []

    def generate(self, prompts_P: Sequence[list[int]], request: SamplingRequest) -> Any:
        found: list[list[Completion]] = []
        for ids in prompts_P:
            said = self._tokenizer.decode(ids)
            question = said.split("user<|header_end|>\n\n")[-1].split("<|eot|>")[0]
            self.asked.append(question)
            texts = self._texts(question)
            of_one: list[Completion] = []
            for n in range(request.num_generations):
                text = texts[n % len(texts)]
                tokens = self._tokenizer.encode(text, add_special_tokens=False)
                reason: Any = "length" if len(tokens) > request.max_tokens else "stop"
                of_one.append(
                    Completion(
                        token_ids=tokens[: request.max_tokens],
                        logprobs=[-1.0] * min(len(tokens), request.max_tokens),
                        finish_reason=reason,
                    )
                )
            found.append(of_one)
        return found


@pytest.fixture(scope="module")
def tokenizer(tiny_llama4: Path) -> Any:
    return load_tokenizer(tiny_llama4)


def sums(num: int = 6) -> list[Prompt]:
    return [make_prompt(f"What is {i} + 1?", str(i + 1), capability="sums") for i in range(num)]


def medium(prompts: Sequence[Prompt]) -> list[RolloutGroup]:
    return [make_group([1, 0, 1, 0], prompt_id=p.prompt_id) for p in prompts]


def write(
    tokenizer: Any,
    texts: Callable[[str], Sequence[str]],
    *,
    spec: Variants = SPEC,
    groups: Sequence[RolloutGroup] | None = None,
    known: frozenset[str] = frozenset(),
    room: int = 9,
    **where: Any,
) -> tuple[list[Variant], list[Prompt], TextEngine]:
    prompts = sums()
    engine: Any = TextEngine(tokenizer, texts)
    sampling = Sampling(
        engine=engine,
        tokenizer=tokenizer,
        request=SamplingRequest(num_generations=4, max_tokens=16, seed=1),
        prompts={p.prompt_id: p for p in prompts},
        step=7,
        **where,
    )
    groups = medium(prompts) if groups is None else groups
    found, accepted = write_variants(groups, spec, sampling, known=known, room=room)
    return found, accepted, engine


def harder(answers: Sequence[str]) -> Callable[[str], Sequence[str]]:
    """A policy that writes `10 + i` for `i` and answers what it wrote with `answers`."""

    def texts(question: str) -> Sequence[str]:
        if question.startswith("Harder: "):
            return [question.removeprefix("Harder: ").replace("is ", "is 1")]
        return answers

    return texts


def test_agreement_makes_a_prompt_with_its_origin(tokenizer: Any) -> None:
    found, accepted, _ = write(tokenizer, harder(["12", "12", "12", "no"]))
    assert len(found) == len(accepted) == 4
    parents = {p.prompt_id: p for p in sums()}
    for variant, prompt in zip(found, accepted, strict=True):
        assert (variant.why, variant.agreement, variant.answer) == ("accepted", 0.75, "12")
        assert variant.prompt_id == prompt.prompt_id
        assert prompt.origin == variant.parent_id
        assert prompt.origin in parents
        assert (prompt.reference, prompt.verifier, prompt.capability) == ("12", "exact", "sums")
        assert prompt.meta == {"agreement": 0.75, "written_at_step": 7}
        assert prompt.messages[-1]["content"] == variant.question


def test_wrong_agreement_is_measured_where_the_truth_is_known(tokenizer: Any) -> None:
    """All agree on 12: right for 11 + 1 alone."""
    found, accepted, _ = write(
        tokenizer, harder(["12", "12", "no"]), spec=SPEC.model_copy(update={"per_step": 6})
    )
    assert len(accepted) == 6
    assert sorted(v.truth for v in found if v.truth) == ["11", "12", "13", "14", "15", "16"]
    rows = [{"why": v.why, "truth": v.truth, "answer": v.answer} for v in found]
    assert false_positives(rows) == (6, 5)
    assert false_positives([{**row, "truth": None} for row in rows]) == (0, 0)


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (harder(["1", "2", "3", "4"]), "answers differ"),
        (harder(["12"]), "solved"),
        (harder([" "]), "answers differ"),
        (lambda question: [" "], "empty"),
        (lambda question: ["a long story " * 40], "cut off"),
        (lambda question: ["What is 3 + 1?"], "known"),
    ],
)
def test_what_does_not_hold_says_why(tokenizer: Any, texts: Any, why: str) -> None:
    known = frozenset(h for p in sums() for h in question_hashes(p))
    found, accepted, _ = write(tokenizer, texts, known=known)
    assert accepted == []
    assert {v.why for v in found} == {why}
    assert all(v.prompt_id is None for v in found)


def test_two_equal_variants_are_one(tokenizer: Any) -> None:
    def texts(question: str) -> Sequence[str]:
        return ["What is 5 + 5?"] if question.startswith("Harder") else ["10", "10", "no"]

    found, accepted, _ = write(tokenizer, texts)
    assert [v.why for v in found].count("accepted") == len(accepted) == 1
    assert {v.why for v in found} == {"accepted", "known"}


def test_only_the_medium_band_of_the_data_is_varied_and_no_more_than_there_is_room(
    tokenizer: Any,
) -> None:
    prompts = sums()
    groups = [
        make_group([1, 1, 1, 1], prompt_id=prompts[0].prompt_id),
        make_group([0, 0, 0, 0], prompt_id=prompts[1].prompt_id),
        make_group([1, 0], prompt_id=prompts[2].prompt_id),
        make_group([1, 0, 1, 0], prompt_id=prompts[3].prompt_id),
        make_group([None, None, None, None], prompt_id=prompts[4].prompt_id),
    ]
    found, _, engine = write(tokenizer, harder(["7"]), groups=groups)
    assert [v.parent_id for v in found] == [prompts[3].prompt_id]
    assert engine.asked[0] == "Harder: What is 3 + 1?"
    assert write(tokenizer, harder(["7"]), room=0)[0] == []
    assert len(write(tokenizer, harder(["7"]), room=2)[0]) == 2


def test_every_token_is_counted_and_two_engines_write_the_same(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(place: Any) -> Any:
        found, accepted, _ = write(tokenizer, harder(["12", "no", "12"]), place=place)
        return found, accepted

    places = [engine_place(rank=r, world_size=2, tensor_parallel_size=1) for r in range(2)]
    one, two = side_by_side(monkeypatch, places, work)
    (alone,) = side_by_side(
        monkeypatch, [engine_place(rank=0, world_size=1, tensor_parallel_size=1)], work
    )
    assert one == two == alone
    for variant in alone[0]:
        written = tokenizer.encode(variant.question, add_special_tokens=False)
        twelve, no = (len(tokenizer.encode(t, add_special_tokens=False)) for t in ("12", "no"))
        assert variant.num_tokens == len(written) + 5 * twelve + 3 * no


@given(st.lists(st.integers(0, 999), min_size=2, max_size=4), st.data())
def test_the_truth_of_arithmetic_is_pythons(numbers: list[int], data: st.DataObject) -> None:
    signs = [data.draw(st.sampled_from([" + ", " - ", "*"])) for _ in numbers[1:]]
    expression = str(numbers[0]) + "".join(
        s + str(n) for s, n in zip(signs, numbers[1:], strict=True)
    )
    assert arithmetic_truth(f"What is {expression}?") == str(eval(expression))
    assert arithmetic_truth(f"In {numbers[0]} days, what is {expression}?") is None


def test_a_question_without_arithmetic_has_no_known_truth() -> None:
    assert arithmetic_truth("How many letters are in word?") is None
    assert arithmetic_truth("gcd of 12 and 18?") is None
    assert arithmetic_truth("007 + 1") == "8"


def test_the_conversation_is_the_parents_but_for_the_question(tokenizer: Any) -> None:
    _, accepted, _ = write(tokenizer, harder(["12", "12", "no"]))
    for prompt in accepted:
        assert [m["role"] for m in prompt.messages] == ["user"]
        assert prompt_ids(tokenizer, prompt.messages)
