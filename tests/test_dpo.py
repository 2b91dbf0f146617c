from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig, DPOTrainer

from posttrain import dpo
from posttrain.models import PolicyPath, load_policy, load_tokenizer, sequence_logprobs
from posttrain.recipe.models import Lora, Model
from posttrain.recipe.trainer_blocks import DPOBlock
from posttrain.records import PreferencePair

IDS = [[1, 20, 30, 40], [1, 50, 60]]
AFTER = [[5, 6, 7], [8, 9]]


def spec(base: Path) -> Model:
    return Model(base=str(base), dtype="float32", lora=Lora(rank=4, alpha=16))


@pytest.fixture
def rl_policy(tiny_llama4: Path, tmp_path: Path) -> PolicyPath:
    """A policy as RL leaves it: an adapter that has moved away from the base."""
    model = load_policy(PolicyPath(base=tiny_llama4), spec(tiny_llama4), trainable=True)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(str(tmp_path / "rl"))
    return PolicyPath(base=tiny_llama4, adapter=tmp_path / "rl")


def make_trainer(policy: PolicyPath, tmp_path: Path, **arguments: Any) -> DPOTrainer:
    row = {
        "prompt": [{"role": "user", "content": "2+2"}],
        "chosen": [{"role": "assistant", "content": "4"}],
        "rejected": [{"role": "assistant", "content": "5"}],
    }
    args = DPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        max_steps=2,
        learning_rate=1e-2,
        report_to="none",
        **arguments,
    )
    return DPOTrainer(
        model=load_policy(policy, spec(policy.base), trainable=True),
        args=args,
        train_dataset=Dataset.from_list([row] * 4),
        processing_class=load_tokenizer(policy.base),
    )


def test_the_reference_is_the_policy_after_rl(rl_policy: PolicyPath, tmp_path: Path) -> None:
    trainer = make_trainer(rl_policy, tmp_path / "dpo")
    dpo.check_reference(trainer)
    expected = sequence_logprobs(
        load_policy(rl_policy, spec(rl_policy.base), trainable=False), IDS, AFTER
    )
    bare = sequence_logprobs(
        load_policy(PolicyPath(base=rl_policy.base), spec(rl_policy.base), trainable=False),
        IDS,
        AFTER,
    )
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    assert isinstance(model, PeftModel)
    trained = sequence_logprobs(model, IDS, AFTER)
    model.set_adapter("ref")
    reference = sequence_logprobs(model, IDS, AFTER)
    for row, want, base, now in zip(reference, expected, bare, trained, strict=True):
        assert row == pytest.approx(want, abs=1e-6)
        assert row != pytest.approx(base, abs=1e-2)
        assert row != pytest.approx(now, abs=1e-4)


def test_the_first_loss_is_that_of_a_policy_equal_to_its_reference(
    rl_policy: PolicyPath, tmp_path: Path
) -> None:
    trainer = make_trainer(rl_policy, tmp_path / "dpo", logging_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.693147, abs=1e-4)


def test_a_reference_that_is_not_the_policy_is_refused(
    rl_policy: PolicyPath, tmp_path: Path
) -> None:
    trainer = make_trainer(rl_policy, tmp_path / "dpo")
    model = trainer.accelerator.unwrap_model(trainer.model)
    assert isinstance(model, PeftModel)
    weight = next(p for n, p in model.named_parameters() if ".ref." in n)
    with torch.no_grad():
        weight.add_(1e-3)
    with pytest.raises(ValueError, match="differs from the policy"):
        dpo.check_reference(trainer)
    model.delete_adapter("ref")
    with pytest.raises(ValueError, match="no frozen copy"):
        dpo.check_reference(trainer)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False])
def test_a_stage_saves_what_it_trained_and_never_the_reference(
    rl_policy: PolicyPath, tmp_path: Path, lora: bool
) -> None:
    model = spec(rl_policy.base) if lora else spec(rl_policy.base).model_copy(update={"lora": None})
    policy = rl_policy if lora else PolicyPath(base=rl_policy.base)
    pairs = [
        PreferencePair(
            prompt_id=f"p{i}",
            prompt=[{"role": "user", "content": f"{i}+1"}],
            chosen=str(i + 1),
            rejected="no",
            corner_case="wrong_answer",
            origin={},
        )
        for i in range(4)
    ]
    out = tmp_path / "out"
    out.mkdir()
    block = DPOBlock(per_device_train_batch_size=2, learning_rate=1e-3)
    summary = dpo.train(
        pairs,
        policy=policy,
        model=model,
        trainer=block,
        seed=0,
        work_dir=tmp_path / "work",
        out_dir=out,
    )
    assert summary["steps"] == 2
    files = {str(p.relative_to(out / "policy")) for p in (out / "policy").rglob("*") if p.is_file()}
    assert ("adapter_model.safetensors" in files) == lora
    assert ("model.safetensors" in files) == (not lora)
    assert not any("ref" in name.split("/")[0] for name in files if "/" in name)
