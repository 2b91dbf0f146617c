"""TRL's fused head at Llama 4's vocabulary, against full logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from trl.trainer.utils import add_fused_lm_head

from benchmarks.gpu.cases import (
    Case,
    Found,
    NotMeasured,
    Setting,
    gigabytes,
    median_seconds,
    milliseconds,
    peak_bytes,
    relative_error,
)
from posttrain.memory import published_shapes
from posttrain.memory.activations import FP32, Pass, pass_bytes

OUTPUTS = {
    "SFT's outputs": ("log_probs", "entropy", "is_top1"),
    "RL's outputs": ("log_probs", "entropy"),
}
VOCABULARY, HIDDEN, TOKENS = 202_048, 5120, 8192
TINY_VOCABULARY, TINY_HIDDEN, TINY_TOKENS = 1000, 32, 64
FEW = 2048
"""Tokens for which full logits are made to compare with."""


class Head(nn.Module):
    """A causal language model whose body is a fixed tensor of hidden states."""

    def __init__(self, states_1NH: Tensor, weight_VH: Tensor) -> None:
        super().__init__()
        vocabulary, hidden = weight_VH.shape
        self.states_1NH = states_1NH
        self.lm_head = nn.Linear(hidden, vocabulary, bias=False, device="meta")
        self.lm_head.weight = nn.Parameter(weight_VH, requires_grad=False)
        text = SimpleNamespace(model_type="llama4_text")
        self.config = SimpleNamespace(get_text_config=lambda: text)

    def forward(self, **inputs: Any) -> Tensor:
        """Return full logits."""
        return self.lm_head(self.states_1NH)

    def base_model(self, **inputs: Any) -> SimpleNamespace:
        """Return the states as the last of a body's."""
        return SimpleNamespace(last_hidden_state=self.states_1NH)

    def get_output_embeddings(self) -> nn.Linear:
        """Return the head."""
        return self.lm_head


def cases(setting: Setting) -> Mapping[str, Case]:
    """Errors on few tokens, then seconds and bytes on many."""
    found: dict[str, Case] = {"errors against fp32 logits": partial(errors, setting)}
    for name, outputs in OUTPUTS.items():
        for share in (1.0, 0.25):
            label = f"{name}, {share:.0%} of the tokens have labels"
            found[label] = partial(cost, setting, outputs, share)
    found["full logits, cross entropy in fp32"] = partial(full_cost, setting)
    return found


def build(setting: Setting, tokens: int, share: float) -> tuple[Head, Tensor]:
    """Build a bfloat16 head, states that take a gradient, and labels for a share of them."""
    vocabulary, hidden = (TINY_VOCABULARY, TINY_HIDDEN) if setting.is_tiny else (VOCABULARY, HIDDEN)
    with torch.device(setting.device):
        torch.manual_seed(0)
        weight = torch.randn(vocabulary, hidden, dtype=torch.bfloat16).mul_(2 * hidden**-0.5)
        states = torch.randn(1, tokens, hidden, dtype=torch.bfloat16).requires_grad_()
        labels = torch.randint(vocabulary, (1, tokens))
        labels[torch.rand(1, tokens) >= share] = -100
    return Head(states, weight), labels


def num_tokens(setting: Setting) -> int:
    """Return the tokens of a pass."""
    return TINY_TOKENS if setting.is_tiny else TOKENS


def errors(setting: Setting) -> Found:
    """Compare log-probabilities, entropy and the states' gradient with full logits in fp32."""
    model, labels = build(setting, min(FEW, num_tokens(setting)), 1.0)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))  # pyright: ignore[reportArgumentType] a stand-in
    states = model.states_1NH
    with torch.autocast(setting.device, torch.bfloat16):
        out = model(input_ids=labels, labels=labels, fused_lm_head=True)
    (-out.log_probs.mean()).backward()
    assert states.grad is not None
    fused = {"log_probs": out.log_probs[0], "entropy": out.entropy[0], "d_states": states.grad[0]}
    leaf = states.detach()[0].float().requires_grad_()
    log_p_NV = (leaf[:-1] @ model.lm_head.weight.float().T).log_softmax(-1)
    log_probs = log_p_NV.gather(1, labels[0, 1:, None])[:, 0]
    (-log_probs.mean()).backward()
    assert leaf.grad is not None
    exact = {
        "log_probs": log_probs.detach(),
        "entropy": -(log_p_NV.exp() * log_p_NV).sum(-1).detach(),
        "d_states": leaf.grad,
    }
    found = {name: relative_error(fused[name].detach(), exact[name]) for name in exact}
    largest = float((fused["log_probs"].detach() - exact["log_probs"]).abs().max())
    told = ", ".join(f"{name} {error:.1e}" for name, error in found.items())
    return Found(
        text=f"relative: {told}; largest |log-probability difference| {largest:.1e}",
        figures={**found, "largest_log_prob_difference": largest},
    )


def cost(setting: Setting, outputs: tuple[str, ...], share: float) -> Found:
    """Time forward and backward, and count bytes against the plan."""
    tokens = num_tokens(setting)
    model, labels = build(setting, tokens, share)
    add_fused_lm_head(model, outputs=outputs)  # pyright: ignore[reportArgumentType] a stand-in

    def forward() -> Tensor:
        with torch.autocast(setting.device, torch.bfloat16):
            return model(input_ids=labels, labels=labels, fused_lm_head=True).loss

    found = measured(setting, model, forward)
    shapes = published_shapes("meta-llama/Llama-4-Scout-17B-16E")
    assert shapes is not None
    run = Pass(sequences=1, length=tokens, value=2, is_masked=False, has_kernels=setting.is_cuda)
    planned = pass_bytes(shapes, run, is_checkpointed=True)
    # The plan's figure has the last norm's fp32 input and output, which are the body's.
    ours = planned.logits - (FP32 + 2) * tokens * shapes.hidden_size
    valid = int((labels[:, 1:] != -100).sum())
    operations = 2 * valid * model.lm_head.weight.numel() * 3
    tflops = operations / found["forward_backward_seconds"] / 1e12
    text = f"{told(found)}, {tflops:.0f} TFLOP/s"
    if setting.is_cuda:
        text += f"; peak {gigabytes(found['peak_bytes'])}, planned {gigabytes(ours)}"
    return Found(text=text, figures={**found, "planned_bytes": ours, "tflops": tflops})


def full_cost(setting: Setting) -> Found:
    """Time the same with all logits at once."""
    tokens = num_tokens(setting)
    if setting.is_cuda and torch.cuda.mem_get_info()[0] < 40e9:
        raise NotMeasured("less than 40 GB of device memory are free")
    model, labels = build(setting, tokens, 1.0)

    def forward() -> Tensor:
        logits = model()[0, :-1].float()
        return functional.cross_entropy(logits, labels[0, 1:])

    found = measured(setting, model, forward)
    text = told(found) + (f"; peak {gigabytes(found['peak_bytes'])}" if setting.is_cuda else "")
    return Found(text=text, figures=found)


def measured(setting: Setting, model: Head, forward: Callable[[], Tensor]) -> dict[str, float]:
    """Return seconds of the forward pass, of both passes, and bytes at the peak."""

    def both() -> None:
        forward().backward()
        model.states_1NH.grad = None

    with torch.no_grad():
        alone = median_seconds(forward, setting, repeats=5)
    return {
        "forward_seconds": alone,
        "forward_backward_seconds": median_seconds(both, setting, repeats=5),
        "peak_bytes": peak_bytes(both, setting),
    }


def told(found: Mapping[str, float]) -> str:
    """Return the seconds in words."""
    return (
        f"forward {milliseconds(found['forward_seconds'])}, "
        f"forward and backward {milliseconds(found['forward_backward_seconds'])}"
    )
