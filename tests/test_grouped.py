from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.models.grouped import grouped_linear


def ends(counts: list[int]) -> Tensor:
    return torch.tensor(counts).cumsum(0).to(torch.int32)


def row_by_row(x_NI: Tensor, weight_EIO: Tensor, counts: list[int]) -> Tensor:
    """The definition: each row times its own expert's weight."""
    expert_N = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return torch.einsum("ni,nio->no", x_NI, weight_EIO[expert_N])


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    fan_in=st.integers(1, 6),
    fan_out=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_grouped_linear_multiplies_each_row_by_its_experts_weight(
    counts: list[int], fan_in: int, fan_out: int, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(sum(counts), fan_in, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(counts), fan_in, fan_out, dtype=torch.float64, requires_grad=True)
    found = grouped_linear(x, weight, ends(counts))
    expected = row_by_row(x, weight, counts)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad((found * direction).sum(), (x, weight)),
        torch.autograd.grad((expected * direction).sum(), (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_grouped_linear_has_the_gradients_of_finite_differences() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, w: grouped_linear(a, w, ends([2, 0, 3])), (x, weight))


def test_grouped_linear_with_a_frozen_weight_saves_no_input() -> None:
    x = torch.randn(6, 4, requires_grad=True)
    weight = torch.randn(2, 4, 3)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = grouped_linear(x, weight, ends([2, 4]))
    assert all(t.data_ptr() != x.data_ptr() for t in kept)
    y.sum().backward()  # an expanded gradient, of stride 0
    assert weight.grad is None
    assert x.grad is not None


@pytest.mark.parametrize("rows_dtype", [torch.float32, torch.bfloat16])
def test_grouped_linear_computes_in_autocasts_dtype(rows_dtype: torch.dtype) -> None:
    x = torch.randn(4, 8, dtype=rows_dtype)
    weight = torch.randn(2, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = grouped_linear(x, weight, ends([1, 3]))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
