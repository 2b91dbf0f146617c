"""The load-balancing loss of full training, TRL's own, on Llama 4's grouped experts."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from datasets import Dataset
from torch import nn
from trl import SFTConfig, SFTTrainer

from posttrain.models import PolicyPath, load_policy
from posttrain.models.experts import moe_layers
from posttrain.models.policy import load_tokenizer
from posttrain.recipe.models import Lora, LoraTarget, Model

COEFFICIENT = 0.3
IDS = torch.tensor([[11, 5, 9, 17, 40, 41, 42, 7], [3, 3, 8, 100, 2, 60, 61, 62]])
BATCH = {"input_ids": IDS, "labels": IDS, "attention_mask": torch.ones_like(IDS)}


def trainer(base: Path, out: Path, coefficient: float | None, lora: Lora | None) -> SFTTrainer:
    spec = Model(base=str(base), dtype="float32", lora=lora)
    return SFTTrainer(
        model=load_policy(PolicyPath(base=base), spec, trainable=True),
        args=SFTConfig(
            output_dir=str(out), report_to="none", use_cpu=True, bf16=False,
            router_aux_loss_coef=coefficient, gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_dict({"text": ["a", "b"]}),
        processing_class=load_tokenizer(base),
    )  # fmt: skip


def test_load_balancing_loss_is_switch_transformers_over_all_layers(
    tiny_llama4: Path, tmp_path: Path
) -> None:
    """E sum_i f_i P_i of Fedus et al. 2021, eq. 4 to 6: f share of tokens, P mean softmax."""
    with_loss = trainer(tiny_llama4, tmp_path / "a", COEFFICIENT, None)
    without = trainer(tiny_llama4, tmp_path / "b", 0.0, None)
    logits: list[torch.Tensor] = []
    for moe in moe_layers(cast(nn.Module, with_loss.model)).values():
        moe.watch = lambda chosen, found: logits.append(found)
    loss = with_loss.compute_loss(cast(nn.Module, with_loss.model), dict(BATCH))
    plain = without.compute_loss(cast(nn.Module, without.model), dict(BATCH))
    assert len(logits) == 2
    all_NE = torch.cat(logits)
    f_E = torch.bincount(all_NE.argmax(1), minlength=4) / len(all_NE)
    expected = 4 * (f_E * all_NE.softmax(1).mean(0)).sum()
    torch.testing.assert_close((loss - plain) / COEFFICIENT, expected, rtol=1e-4, atol=1e-5)
    loss.backward()
    routers = [m.router.weight for m in moe_layers(cast(nn.Module, with_loss.model)).values()]
    assert all(router.grad is not None for router in routers)


@pytest.mark.parametrize("targets", [["attention"], ["experts", "router"]])
def test_lora_has_no_load_balancing_loss(
    tiny_llama4: Path, tmp_path: Path, targets: list[LoraTarget]
) -> None:
    assert not trainer(tiny_llama4, tmp_path, None, Lora(rank=4, targets=targets)).aux_loss_enabled
    assert trainer(tiny_llama4, tmp_path, None, None).aux_loss_enabled
