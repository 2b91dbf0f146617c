from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.curriculum import Curriculum, UniformSpec, build_curriculum
from posttrain.models import PolicyPath, load_tokenizer
from posttrain.recipe.models import EngineSpec, Lora, Model
from posttrain.records import Prompt
from posttrain.rl import RlInputs, train, weight_sync
from posttrain.rl.collect import Batch, collect_batch
from posttrain.rl.sampling import engine_place
from posttrain.rl.trainer import _is_masked, compact
from posttrain.tables import read_groups, read_json, read_table
from tests.builders import (
    ScriptedEngine,
    make_group,
    make_prompt,
    make_sampling,
    rl_section,
    side_by_side,
    two_capabilities,
)


def collect(
    tokenizer: Any,
    right: Callable[[Prompt], int],
    *,
    num: int = 20,
    num_groups: int = 4,
    max_refills: int = 2,
    step: int = 0,
    curriculum: Curriculum | None = None,
) -> tuple[Batch, dict[str, Prompt], ScriptedEngine]:
    prompts = two_capabilities(num)
    engine = ScriptedEngine(tokenizer, prompts, right)
    by_id = {p.prompt_id: p for p in prompts}
    batch = collect_batch(
        curriculum or build_curriculum(UniformSpec(kind="uniform"), prompts, seed=0),
        make_sampling(tokenizer, engine, by_id, step=step),
        num_groups=num_groups,
        max_refills=max_refills,
    )
    return batch, by_id, engine


@pytest.fixture(scope="module")
def tokenizer(tiny_llama4: Path) -> Any:
    return load_tokenizer(tiny_llama4)


def test_groups_with_signal_need_no_refill(tokenizer: Any) -> None:
    batch, _, engine = collect(tokenizer, lambda p: 2)
    assert batch.uses == ["trained"] * 4
    assert batch.refill_rounds == [0] * 4
    assert len(engine.seeds) == 1


def test_groups_without_signal_are_replaced_by_the_same_capability(tokenizer: Any) -> None:
    batch, prompts, _ = collect(
        tokenizer,
        lambda p: 2 if p.capability == "b" else 4 * (hash(p.reference) % 2),
        max_refills=1,
    )
    trained = [g for g, u in zip(batch.groups, batch.uses, strict=True) if u == "trained"]
    assert all(g.has_signal for g in trained)
    assert [prompts[g.prompt_id].capability for g in trained] == ["b", "b"]
    refilled = [g for g, n in zip(batch.groups, batch.refill_rounds, strict=True) if n == 1]
    assert [prompts[g.prompt_id].capability for g in refilled] == ["a", "a"]
    assert batch.uses.count("filler") == 2
    assert len(batch.training_groups) == 4


def test_the_refill_cap_is_soft(tokenizer: Any) -> None:
    batch, _, engine = collect(tokenizer, lambda p: 0, max_refills=3)
    assert batch.uses == ["filler"] * 4 + ["no_signal_failed"] * 12
    assert len(engine.seeds) == len(set(engine.seeds)) == 4


def test_a_small_pool_ends_the_refills(tokenizer: Any) -> None:
    batch, _, _ = collect(tokenizer, lambda p: 4, num=2, max_refills=5)
    assert len(batch.groups) == 4
    assert batch.uses == ["filler"] * 4


def test_the_same_step_draws_the_same_batch_and_another_step_another_seed(tokenizer: Any) -> None:
    one, _, first = collect(tokenizer, lambda p: 2, step=3)
    two, _, again = collect(tokenizer, lambda p: 2, step=3)
    _, _, later = collect(tokenizer, lambda p: 2, step=4)
    assert [g.prompt_id for g in one.groups] == [g.prompt_id for g in two.groups]
    assert (one.uses, one.refill_rounds) == (two.uses, two.refill_rounds)
    assert first.seeds == again.seeds != later.seeds


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=40, max_size=40), st.integers(1, 12), st.integers(0, 3))
def test_a_batch_is_full_and_everything_is_accounted_for(
    tiny_llama4: Path, rights: list[int], num_groups: int, max_refills: int
) -> None:
    tokenizer = load_tokenizer(tiny_llama4)
    script = {p.prompt_id: right for p, right in zip(two_capabilities(20), rights, strict=True)}
    batch, _, _ = collect(
        tokenizer, lambda p: script[p.prompt_id], num_groups=num_groups, max_refills=max_refills
    )
    assert len(batch.training_groups) == num_groups
    assert len({g.prompt_id for g in batch.groups}) == len(batch.groups)
    signal = [g.has_signal for g in batch.groups]
    for has_signal, use in zip(signal, batch.uses, strict=True):
        assert has_signal == (use in ("trained", "surplus"))
    # A group without signal is trained on only where there were not enough with it.
    if "filler" in batch.uses:
        assert "surplus" not in batch.uses
    flags = [g.has_signal for g in batch.training_groups]
    assert flags == sorted(flags, reverse=True)


def test_groups_without_signal_do_not_thin_out_the_gradient() -> None:
    signal, dead = make_group([1, 0]), make_group([0, 0])
    assert not _is_masked(signal, [signal, dead])
    assert _is_masked(dead, [signal, dead])
    assert not _is_masked(dead, [dead, dead])


def test_what_is_padding_in_all_rows_that_count_is_cut_off() -> None:
    inputs = {
        "prompt_ids": torch.tensor([[1, 2, 3, 4], [0, 0, 5, 6], [0, 7, 8, 9]]),
        "prompt_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]]),
        "completion_ids": torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [8, 0, 0, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]),
        "tool_mask": torch.tensor([[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]),
        "old_per_token_logps": torch.arange(15.0).view(3, 5),
        "advantages": torch.tensor([0.0, 1.0, -1.0]),
        "num_items_in_batch": torch.tensor(3),
    }
    told = compact(inputs, drop_rows=True)
    assert told["prompt_ids"].tolist() == [[0, 5, 6], [7, 8, 9]]
    assert told["prompt_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert told["completion_ids"].tolist() == [[6, 7], [8, 0]]
    assert told["tool_mask"].tolist() == [[1, 1], [1, 1]]
    assert told["old_per_token_logps"].tolist() == [[5.0, 6.0], [10.0, 11.0]]
    assert told["advantages"].tolist() == [1.0, -1.0]
    assert told["num_items_in_batch"] == 3
    whole = compact(inputs, drop_rows=False)
    assert all(torch.equal(whole[key], inputs[key]) for key in inputs)
    # One row stays where none counts: a model wants a batch, and every process must take part.
    none = compact(inputs | {"tool_mask": torch.zeros(3, 5, dtype=torch.long)}, drop_rows=True)
    assert none["completion_ids"].tolist() == [[1, 2, 3, 4, 5]]


@pytest.mark.slow
def test_training_records_every_step_and_ends_with_the_weights_it_trained(
    tiny_llama4: Path, tmp_path: Path
) -> None:
    prompts = [make_prompt(f"{i} plus", str(i % 10), capability="ab"[i % 2]) for i in range(24)]
    spec = EngineSpec(
        kind="transformers", max_model_len=128, max_num_seqs=64, parity_tolerance=1e-3
    )
    block = {
        "max_steps": 3,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
        "save_steps": 1,
    }
    model = Model(base=str(tiny_llama4), dtype="float32", lora=Lora(rank=4))
    inputs = RlInputs(prompts=prompts, policy=PolicyPath(base=tiny_llama4))
    arguments: dict[str, Any] = {"model": model, "engine": spec, "seed": 0}
    out = tmp_path / "out"
    out.mkdir()
    curriculum = UniformSpec(kind="uniform", max_refills=1)
    rl = rl_section(trainer=block, curriculum=curriculum)
    summary = train(rl, inputs, **arguments, work_dir=tmp_path / "work", out_dir=out)
    assert summary["steps"] == 3
    offloaded = tmp_path / "offloaded"
    offloaded.mkdir()
    train(
        rl_section(trainer=block, curriculum=curriculum, offload_policy=True),
        inputs,
        **arguments,
        work_dir=tmp_path / "work-offloaded",
        out_dir=offloaded,
    )
    weights = "policy/adapter_model.safetensors"
    assert (offloaded / weights).read_bytes() == (out / weights).read_bytes()
    tables = sorted((out / "rollouts").iterdir())
    assert [t.name for t in tables] == [f"step-{i:06d}.parquet" for i in range(3)]
    for step, table in enumerate(tables):
        groups = read_groups(table)
        assert {(g.step, g.policy_version) for g in groups} == {(step, step)}
        assert {row["use"] for row in read_table(table)} <= {
            "trained", "filler", "no_signal_solved", "no_signal_failed", "undecided", "surplus",
        }  # fmt: skip
    flow = read_table(out / "curriculum.jsonl")
    assert sum(row["proposed"] for row in flow) == sum(len(read_groups(t)) for t in tables)
    parity = read_table(out / "parity.jsonl")
    assert [row["step"] for row in parity] == [1, 2]
    assert all(row["parity/mean"] < 1e-4 for row in parity)
    assert read_json(out / "policy" / "parity.json")["logprobs"]
    assert (out / "policy" / "adapter_model.safetensors").exists()


class SleepyEngine:
    """Notes what is asked of it, in order, and how awake it was."""

    policy_version = 0

    def __init__(self) -> None:
        self.calls: list[str] = []

    def sleep(self) -> None:
        self.calls.append("sleep")

    def wake(self) -> None:
        self.calls.append("wake")


@pytest.mark.parametrize("offload", [True, False])
def test_engine_and_policy_take_turns(tmp_path: Path, offload: bool) -> None:
    """Policy away, engine up; engine asleep, policy back: never both, and the same parameters."""
    engine, model = SleepyEngine(), torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    objects = list(model.parameters())
    order = engine.calls
    trainer: Any = SimpleNamespace(
        model=model,
        optimizer=optimizer,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        state=SimpleNamespace(global_step=0),
    )
    with pytest.MonkeyPatch.context() as patch:
        real = weight_sync.move

        def noted(*arguments: Any) -> None:
            order.append("policy moved")
            real(*arguments)

        patch.setattr(weight_sync, "move", noted)
        weights = weight_sync.WeightSync(
            engine,  # type: ignore[arg-type]
            EngineSpec(kind="transformers"),
            base=tmp_path,
            offload_policy=offload,
            work_dir=tmp_path,
        )
        with weights.engine_turn(trainer, []):
            order.append("rollouts")
    moved = ["policy moved"] * offload
    assert order == [*moved, "wake", "rollouts", "sleep", *moved]
    assert all(a is b for a, b in zip(model.parameters(), objects, strict=True))
    assert all(a.equal(b) for a, b in zip(model.parameters(), before, strict=True))
    optimizer.step()
    assert not any(a.equal(b) for a, b in zip(model.parameters(), before, strict=True))


def test_everything_that_training_keeps_moves_along() -> None:
    """The meta device stands for another one: what lies there was moved."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    weight_sync.move(model, optimizer, torch.device("meta"))
    states = [s for kept in optimizer.state.values() for s in kept.values() if s.dim() > 0]
    assert len(states) == 4
    assert all(t.is_meta for t in (*model.parameters(), *states))
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())


def test_two_engines_share_the_prompts_and_one_process_of_each_speaks(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four processes in pairs: every prompt is generated once, and all see all of them."""
    places = [engine_place(rank=r, world_size=4, tensor_parallel_size=2) for r in range(4)]
    prompts = two_capabilities(20)

    def batch(place: Any) -> tuple[Batch, ScriptedEngine]:
        engine = ScriptedEngine(tokenizer, prompts, lambda p: 2)
        found = collect_batch(
            build_curriculum(UniformSpec(kind="uniform"), prompts, seed=0),
            make_sampling(tokenizer, engine, {p.prompt_id: p for p in prompts}, place=place),
            num_groups=6,
            max_refills=0,
        )
        return found, engine

    found = side_by_side(monkeypatch, places, batch)
    seeds = [engine.seeds for _, engine in found]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    asked = [engine.asked[0] for _, engine in found]
    assert asked[0] == asked[1] != asked[2] == asked[3]
    batches = [[g.prompt_id for g in batch.groups] for batch, _ in found]
    assert batches[0] == batches[1] == batches[2] == batches[3]
    assert sorted(batches[0]) == sorted(asked[0] + asked[2])
    assert len(set(batches[0])) == 6
