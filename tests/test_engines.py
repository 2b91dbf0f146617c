from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from posttrain.engines import Completion, Engine, SamplingRequest, make_engine
from posttrain.engines.parity import check_parity, expected_logprobs, load_expected, save_expected
from posttrain.engines.rollouts import roll_out
from posttrain.errors import HealthStop, RecipeError, SetupError
from posttrain.lengths import check_prompt_lengths
from posttrain.models import PolicyPath, live_tensors, load_tokenizer, prompt_ids
from posttrain.models.loading import load_base
from posttrain.recipe.models import EngineSpec
from posttrain.records import with_system
from tests.builders import make_prompt

PROMPTS = [[1, 20, 30, 40], [1, 50, 60], [1, 70, 80, 90, 100, 110]]
SPEC = EngineSpec(kind="transformers", max_model_len=128, max_num_seqs=8)
REQUEST = SamplingRequest(num_generations=4, max_tokens=6, seed=11)


@pytest.fixture(scope="module")
def engine(tiny_llama4: Path) -> Iterator[Engine]:
    running = make_engine(SPEC, PolicyPath(base=tiny_llama4), dtype="float32", seed=0)
    yield running
    running.close()


def worst(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float:
    """The largest difference between two ragged lists of numbers."""
    return max(abs(x - y) for xs, ys in zip(a, b, strict=True) for x, y in zip(xs, ys, strict=True))


def check_sampling(engine: Engine) -> None:
    """What every engine owes: shape, reproducibility, log-probabilities that scoring confirms."""
    groups = engine.generate(PROMPTS, REQUEST)
    assert [len(group) for group in groups] == [4, 4, 4]
    told: dict[int, list[Completion]] = {}
    assert engine.generate(PROMPTS, REQUEST, on_done=told.__setitem__) == groups
    assert [told[i] for i in range(len(PROMPTS))] == groups
    other = SamplingRequest(num_generations=4, max_tokens=6, seed=12)
    assert engine.generate(PROMPTS, other) != groups
    flat = [(p, c) for p, group in zip(PROMPTS, groups, strict=True) for c in group]
    scores = engine.score([p for p, _ in flat], [c.token_ids for _, c in flat])
    assert worst(scores, [c.logprobs for _, c in flat]) < 1e-4
    assert all(len(c.token_ids) == 6 or c.finish_reason == "stop" for _, c in flat)


def check_sync(engine: Engine, base: Path) -> None:
    """A sync takes, there and back, and log-probabilities of other weights are told apart."""
    model = load_base(base, dtype="float32")
    right = expected_logprobs(model, PROMPTS, [[5, 6, 7]] * 3)
    assert check_parity(engine, right, tolerance=1e-4).num_tokens == 9
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "experts" in name or "o_proj" in name:
                parameter.mul_(-1.5)
    changed = expected_logprobs(model, PROMPTS, [[5, 6, 7]] * 3)
    with pytest.raises(HealthStop, match="does not hold the policy's weights"):
        check_parity(engine, changed, tolerance=1e-2)
    engine.sync_weights(live_tensors(model), policy_version=3)
    assert engine.policy_version == 3
    assert check_parity(engine, changed, tolerance=1e-4).policy_version == 3
    engine.sync_weights(live_tensors(load_base(base, dtype="float32")), policy_version=4)
    check_parity(engine, right, tolerance=1e-4)


def test_transformers_engine_samples(engine: Engine) -> None:
    check_sampling(engine)


def test_transformers_engine_syncs(engine: Engine, tiny_llama4: Path) -> None:
    check_sync(engine, tiny_llama4)


def test_transformers_engine_is_not_affected_by_padding(engine: Engine) -> None:
    alone = [engine.score([p], [[5, 6, 7]])[0] for p in PROMPTS]
    assert worst(alone, engine.score(PROMPTS, [[5, 6, 7]] * 3)) < 1e-5


def test_transformers_engine_limits_each_row_by_its_own_prompt(tiny_llama4: Path) -> None:
    spec = EngineSpec(kind="transformers", max_model_len=32, max_num_seqs=8)
    engine = make_engine(spec, PolicyPath(base=tiny_llama4), dtype="float32", seed=0)
    request = SamplingRequest(num_generations=1, max_tokens=20, temperature=0.0, seed=0)
    long = [1, *range(20, 47)]
    (alone,) = engine.generate([PROMPTS[0]], request)
    beside, (crowded,) = engine.generate([PROMPTS[0], long], request)
    assert beside[0].token_ids == alone[0].token_ids
    assert len(alone[0].token_ids) > 4, "else this shows nothing"
    assert len(crowded.token_ids) == 4 == len(crowded.logprobs)
    assert crowded.finish_reason == "length"
    engine.close()


def test_check_prompt_lengths_names_the_longest_prompt(tiny_llama4: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama4)
    short = make_prompt("2 + 2")
    long = make_prompt("many " * 300, meta={"source": "d.jsonl", "line": 7})
    check_prompt_lengths([short, long], tokenizer, max_model_len=4096)
    with pytest.raises(RecipeError, match=r"^1 of 2 prompts leave .*d\.jsonl line 7 has"):
        check_prompt_lengths([short, long], tokenizer, max_model_len=300)
    num = len(prompt_ids(tokenizer, with_system(short.messages, "word " * 40)))
    check_prompt_lengths([short], tokenizer, max_model_len=num, systems=[None])
    check_prompt_lengths([short], tokenizer, max_model_len=num + 1, systems=["word " * 40])
    with pytest.raises(RecipeError, match=f"has {num:,} tokens"):
        check_prompt_lengths([short], tokenizer, max_model_len=num, systems=[None, "word " * 40])


def test_generate_keeps_the_trainers_random_state(engine: Engine) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    engine.generate(PROMPTS, REQUEST)
    assert torch.rand(3).equal(expected)


def test_check_parity_fails_on_nan(engine: Engine, tiny_llama4: Path) -> None:
    model = load_base(tiny_llama4, dtype="float32")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(HealthStop):
        check_parity(engine, expected_logprobs(model, PROMPTS, [[5]] * 3), tolerance=1e9)


def test_make_engine_checks_a_policys_expected_logprobs(tiny_llama4: Path, tmp_path: Path) -> None:
    import shutil

    base = tmp_path / "model"
    shutil.copytree(tiny_llama4, base)
    expected = expected_logprobs(load_base(base, dtype="float32"), PROMPTS, [[5, 6]] * 3)
    save_expected(expected, base)
    assert load_expected(base) == expected
    make_engine(SPEC, PolicyPath(base=base), dtype="float32", seed=0).close()
    wrong = [[x - 1.0 for x in row] for row in expected.logprobs_N]
    save_expected(
        type(expected)(
            prefixes_N=expected.prefixes_N,
            continuations_N=expected.continuations_N,
            logprobs_N=wrong,
        ),
        base,
    )
    with pytest.raises(HealthStop):
        make_engine(SPEC, PolicyPath(base=base), dtype="float32", seed=0)


def test_make_engine_names_the_extra_if_vllm_is_missing(
    tiny_llama4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    spec = SPEC.model_copy(update={"kind": "vllm"})
    with pytest.raises(SetupError) as caught:
        make_engine(spec, PolicyPath(base=tiny_llama4), dtype="float32", seed=0)
    assert "posttrain[vllm]" in caught.value.hint


def test_roll_out_verifies_and_keeps_the_order(engine: Engine, tiny_llama4: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama4)
    prompts = [make_prompt(f"{i} + {i}", str(2 * i)) for i in range(5)]
    groups = roll_out(prompts, engine, tokenizer, REQUEST, step=7)
    assert [g.prompt_id for g in groups] == [p.prompt_id for p in prompts]
    assert {(g.step, len(g.rollouts)) for g in groups} == {(7, 4)}
    for group in groups:
        for rollout in group.rollouts:
            assert rollout.text == tokenizer.decode(
                rollout.completion_ids, skip_special_tokens=True
            )
            assert len(rollout.logprobs) == len(rollout.completion_ids)


@pytest.mark.slow
class TestVllm:
    """The real engine, in this process."""

    @pytest.fixture(scope="class")
    def vllm_engine(self, tiny_llama4: Path) -> Iterator[Engine]:
        pytest.importorskip("vllm")
        spec = EngineSpec(kind="vllm", max_model_len=128, max_num_seqs=16)
        running = make_engine(spec, PolicyPath(base=tiny_llama4), dtype="float32", seed=0)
        yield running
        running.close()

    def test_samples(self, vllm_engine: Engine) -> None:
        check_sampling(vllm_engine)

    def test_syncs(self, vllm_engine: Engine, tiny_llama4: Path) -> None:
        check_sync(vllm_engine, tiny_llama4)

    def test_agrees_with_transformers(self, vllm_engine: Engine, engine: Engine) -> None:
        continuations = [[5, 6, 7, 8, 9]] * 3
        assert (
            worst(vllm_engine.score(PROMPTS, continuations), engine.score(PROMPTS, continuations))
            < 1e-4
        )

    def test_a_partial_sync_leaves_the_rest_alone(
        self, vllm_engine: Engine, tiny_llama4: Path
    ) -> None:
        model = load_base(tiny_llama4, dtype="float32")
        with torch.no_grad():
            model.model.layers[1].self_attn.o_proj.weight.mul_(-2)
        name = "model.layers.1.self_attn.o_proj.weight"
        vllm_engine.sync_weights([(name, model.state_dict()[name])], policy_version=8)
        check_parity(
            vllm_engine, expected_logprobs(model, PROMPTS, [[5, 6, 7]] * 3), tolerance=1e-4
        )
        original = load_base(tiny_llama4, dtype="float32")
        vllm_engine.sync_weights([(name, original.state_dict()[name])], policy_version=9)
        check_parity(
            vllm_engine, expected_logprobs(original, PROMPTS, [[5, 6, 7]] * 3), tolerance=1e-4
        )

    def test_parity_is_lost_without_repacking_experts(
        self, vllm_engine: Engine, tiny_llama4: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The defect this guards against: nothing raises, and every answer is wrong."""
        import posttrain.engines.vllm as module

        model = load_base(tiny_llama4, dtype="float32")
        expected = expected_logprobs(model, PROMPTS, [[5, 6, 7]] * 3)
        with monkeypatch.context() as without:
            without.setattr(module, "pack_experts", lambda experts, layer: None)
            vllm_engine.sync_weights(live_tensors(model), policy_version=5)
            with pytest.raises(HealthStop):
                check_parity(vllm_engine, expected, tolerance=1e-3)
        vllm_engine.sync_weights(live_tensors(model), policy_version=6)
        check_parity(vllm_engine, expected, tolerance=1e-4)
