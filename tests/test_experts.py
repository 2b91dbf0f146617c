"""Grouped experts against transformers' own forward pass, every expert on every token."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor
from transformers import Llama4ForCausalLM, Llama4TextConfig
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts, Llama4TextMoe

from posttrain.models.experts import moe_layers, use_grouped_experts
from posttrain.models.loading import load_base

IDS = torch.tensor([[1, 5, 9, 17, 40, 41, 42, 7], [3, 3, 8, 100, 2, 60, 61, 62]])


def random_moe(num_experts: int, *, top_k: int = 1, dtype: torch.dtype = torch.float32):
    torch.manual_seed(num_experts)
    config = Llama4TextConfig(
        hidden_size=32,
        intermediate_size=48,
        num_local_experts=num_experts,
        num_experts_per_tok=top_k,
        num_hidden_layers=1,
    )
    moe = Llama4TextMoe(config)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return moe.to(dtype)


def grouped(moe: Llama4TextMoe) -> Llama4TextMoe:
    twin = torch.nn.Sequential(copy.deepcopy(moe))
    assert use_grouped_experts(twin) == 1
    return cast(Llama4TextMoe, twin[0])


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.mark.parametrize(
    ("num_experts", "top_k"), [(1, 1), (2, 1), (2, 2), (16, 1), (16, 2), (128, 1), (128, 2)]
)
@pytest.mark.parametrize("num_tokens", [1, 3, 50, 300])
def test_routed_moe_has_the_output_and_gradients_of_transformers(
    num_experts: int, num_tokens: int, top_k: int
) -> None:
    moe = random_moe(num_experts, top_k=top_k)
    twin = grouped(moe)
    x = torch.randn(1, num_tokens, 32, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    expected, expected_logits = moe(x)
    found, logits = twin(y)
    torch.testing.assert_close(logits, expected_logits)
    assert relative_error(found.detach(), expected.detach()) < 1e-6
    direction = torch.randn_like(expected)
    (expected * direction).sum().backward()
    (found * direction).sum().backward()
    assert y.grad is not None
    assert x.grad is not None
    assert relative_error(y.grad, x.grad) < 1e-5
    theirs = dict(moe.named_parameters())
    for name, parameter in twin.named_parameters():
        expected_grad = theirs[name].grad
        assert parameter.grad is not None, name
        assert expected_grad is not None, name
        assert relative_error(parameter.grad, expected_grad) < 1e-5, name


def test_routed_moe_with_one_expert_is_a_plain_mlp() -> None:
    moe = random_moe(1)
    x = torch.randn(1, 7, 32)
    torch.testing.assert_close(grouped(moe)(x)[0], moe(x)[0])


def test_grouped_experts_without_tokens_get_a_zero_gradient() -> None:
    moe = grouped(random_moe(8))
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[3] = 1.0
    moe(torch.ones(1, 5, 32))[0].sum().backward()
    grad = moe.experts.gate_up_proj.grad
    assert grad is not None
    assert grad[3].abs().max() > 0
    assert grad[[0, 1, 2, 4, 5, 6, 7]].abs().max() == 0


def test_routed_moe_in_bfloat16_is_as_exact_as_transformers() -> None:
    moe = random_moe(16, dtype=torch.bfloat16)
    x = torch.randn(1, 200, 32, dtype=torch.bfloat16)
    truth = copy.deepcopy(moe).double()(x.double())[0]
    theirs = relative_error(moe(x)[0].double(), truth)
    mine = relative_error(grouped(moe)(x)[0].double(), truth)
    assert mine <= 1.05 * theirs


def test_frozen_grouped_experts_save_activations_of_routed_tokens_only() -> None:
    def saved_bytes(num_experts: int, *, switch: bool) -> int:
        moe = random_moe(num_experts).requires_grad_(False)
        moe = grouped(moe) if switch else moe
        weights = {p.untyped_storage().data_ptr() for p in moe.parameters()}
        seen: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        x = torch.randn(1, 512, 32, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            moe(x)
        return sum(seen.values())

    few, many = saved_bytes(2, switch=True), saved_bytes(64, switch=True)
    assert many < 1.5 * few  # logits alone grow
    assert saved_bytes(64, switch=False) > 20 * many


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_keeps_the_gradients(tiny_llama4: Path, use_reentrant: bool) -> None:
    gradients: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        model = load_base(tiny_llama4, dtype="float32").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        model(IDS, labels=IDS).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


def test_router_logits_are_recorded_as_by_transformers(tiny_llama4: Path) -> None:
    plain = Llama4ForCausalLM.from_pretrained(tiny_llama4, dtype=torch.float32)
    ours = load_base(tiny_llama4, dtype="float32")
    with torch.no_grad():
        expected = plain.model(IDS, output_router_logits=True).router_logits
        found = ours.model(IDS, output_router_logits=True).router_logits
    assert len(found) == len(expected) == 2
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_load_base_converts_every_moe_layer(tiny_llama4: Path) -> None:
    plain = Llama4ForCausalLM.from_pretrained(tiny_llama4, dtype=torch.float32)
    ours = load_base(tiny_llama4, dtype="float32")
    assert len(moe_layers(ours)) == 2
    assert ours.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, plain(IDS).logits)


def test_a_copy_of_a_converted_model_shares_no_weights(tiny_llama4: Path) -> None:
    model = load_base(tiny_llama4, dtype="float32")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(IDS).logits
        for layer in moe_layers(twin).values():
            layer.experts.down_proj.mul_(3)
        torch.testing.assert_close(model(IDS).logits, before)
        assert (twin(IDS).logits - before).abs().max() > 1e-3


def test_grouped_experts_with_another_activation_than_silu() -> None:
    config = Llama4TextConfig(
        hidden_size=16, intermediate_size=24, num_local_experts=2, hidden_act="gelu"
    )
    torch.manual_seed(0)
    moe = Llama4TextMoe(config)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert isinstance(moe.experts, Llama4TextExperts)
    x = torch.randn(1, 9, 16)
    torch.testing.assert_close(grouped(moe)(x)[0], moe(x)[0])
