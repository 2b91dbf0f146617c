"""Prompts computed once per group: the same log-probabilities, entropies and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from posttrain.models.loading import load_base
from posttrain.rl.shared_prompts import (
    MIN_ROW_TOKENS,
    SHAREABLE,
    is_exact,
    pays,
    share_prompts,
)
from posttrain.rl.trainer import CurriculumGRPOTrainer

WIDTH = 5


def micro_batch(
    prompts: list[list[int]], answers: list[list[list[int]]], *, width: int = WIDTH
) -> tuple[Tensor, Tensor]:
    """Ids and mask as TRL gives them: prompts padded on the left, answers on the right."""
    longest = max(map(len, prompts))
    ids: list[list[int]] = []
    mask: list[list[int]] = []
    for prompt, own in zip(prompts, answers, strict=True):
        left = longest - len(prompt)
        for answer in own:
            right = width - len(answer)
            ids.append([0] * left + prompt + answer + [0] * right)
            mask.append([0] * left + [1] * (len(prompt) + len(answer)) + [0] * right)
    return torch.tensor(ids), torch.tensor(mask)


PROMPTS = [list(range(3, 23)), [7, 5, 9, 30], [41]]
ANSWERS = [[[11, 12, 2], [13], [], [11, 12, 14, 15, 2]], [[3, 2], [3, 2], [8]], [[5, 6], [9]]]


def tiny(model_type: str, tiny_llama4: Path) -> PreTrainedModel:
    if model_type == "llama4_text":
        model = load_base(tiny_llama4, dtype="float32")
    else:
        sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 24, "vocab_size": 64}
        sizes |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
        if model_type == "qwen3_moe":
            sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, head_dim=8, **sizes)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model.train()


def computed_by(
    method: Any, model: nn.Module, ids_BT: Tensor, mask_BT: Tensor, **kwargs: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Log-probabilities, entropies and gradients of a weighted sum of both."""
    trainer = object.__new__(CurriculumGRPOTrainer)
    trainer.accelerator = Accelerator(cpu=True)
    model.zero_grad()
    logprobs, entropies, _ = method(
        trainer, model, ids_BT, mask_BT, WIDTH, compute_entropy=True, **kwargs
    )
    weights = torch.linspace(-1, 2, logprobs.numel()).view_as(logprobs)
    (logprobs * weights + 0.3 * entropies * weights.flip(0)).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return logprobs.detach(), entropies.detach(), gradients


@pytest.mark.parametrize("model_type", sorted(SHAREABLE))
def test_shared_prompts_compute_what_separate_rows_do(
    model_type: str, tiny_llama4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(model_type, tiny_llama4)
    ids_BT, mask_BT = micro_batch(PROMPTS, ANSWERS)
    expected = computed_by(GRPOTrainer._get_per_token_logps_and_entropies, model, ids_BT, mask_BT)
    seen: list[torch.Size] = []
    layer: Any = model.get_input_embeddings()
    layer.register_forward_hook(lambda _module, inputs, _out: seen.append(inputs[0].shape))
    found = computed_by(
        CurriculumGRPOTrainer._get_per_token_logps_and_entropies, model, ids_BT, mask_BT
    )
    # 20 + 4 + 1 tokens of prompts less the last of each, 9 + 5 + 3 of answers.
    assert seen == [(1, 22 + 17)]
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)
    assert len(found[2]) == len(expected[2])
    for ours, theirs in zip(found[2], expected[2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_groups_fill_rows_and_a_long_one_sets_their_width() -> None:
    prompts = [[n] * 300 for n in range(5)] + [[9] * (MIN_ROW_TOKENS + 10)]
    ids_BT, mask_BT = micro_batch(prompts, [[[1, 2], [3]]] * 6)
    packed = share_prompts(ids_BT, mask_BT, WIDTH)
    assert packed.input_ids_RW.shape == (6, MIN_ROW_TOKENS + 12)
    short = share_prompts(*micro_batch([[n] * 100 for n in range(9)], [[[1, 2], [3]]] * 9), WIDTH)
    assert short.input_ids_RW.shape == (2, 5 * 102)


def test_a_micro_batch_without_any_answer_scores_nothing(tiny_llama4: Path) -> None:
    model = tiny("llama4_text", tiny_llama4)
    ids_BT, mask_BT = micro_batch([[5] * 20], [[[], []]])
    logprobs, entropies, gradients = computed_by(
        CurriculumGRPOTrainer._get_per_token_logps_and_entropies, model, ids_BT, mask_BT
    )
    assert not logprobs.any()
    assert not entropies.any()
    assert gradients
    assert not any(gradient.any() for gradient in gradients)


class TestNotShared:
    """Where sharing would not be exact, or would cost more."""

    def packed(self) -> Any:
        return share_prompts(*micro_batch(PROMPTS, ANSWERS), WIDTH)

    def test_exact_for_llama4(self, tiny_llama4: Path) -> None:
        assert is_exact(self.packed(), tiny("llama4_text", tiny_llama4))

    def test_dropout(self, tiny_llama4: Path) -> None:
        model = tiny("llama4_text", tiny_llama4)
        model.add_module("dropout", nn.Dropout(0.1))
        assert not is_exact(self.packed(), model)

    @pytest.mark.parametrize(
        ("key", "fits", "does_not"),
        [
            ("attention_chunk_size", 24, 23),
            ("sliding_window", 24, 23),
            ("floor_scale", 40, 39),
            ("attention_dropout", 0.0, 0.1),
            ("_attn_implementation", "sdpa", "eager"),
            ("model_type", "llama4_text", "mamba"),
        ],
    )
    def test_what_the_configuration_forbids(
        self, tiny_llama4: Path, key: str, fits: Any, does_not: Any
    ) -> None:
        model = tiny("llama4_text", tiny_llama4)
        config: Any = model.config
        config.attn_temperature_tuning = True
        for value, expected in ((fits, True), (does_not, False)):
            setattr(config, key, value)
            assert is_exact(self.packed(), model) is expected

    def test_answers_much_longer_than_the_prompt(self) -> None:
        answers = [[[1] * 400] * 8]
        ids_BT, mask_BT = micro_batch([[5] * 20], answers, width=400)
        packed = share_prompts(ids_BT, mask_BT, 400)
        assert not pays(packed, ids_BT, hidden_size=576)
        assert pays(packed, ids_BT, hidden_size=64_000)
