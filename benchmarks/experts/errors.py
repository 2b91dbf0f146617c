"""Errors of grouped experts against transformers, and of packed weights against plain ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.experts.contenders import ALPHA_OVER_RANK, ExpertWork, base_model, ours
from benchmarks.experts.costs import loss_of
from benchmarks.experts.speed import inputs_of
from posttrain.bench.measure import Result
from posttrain.models.experts import GroupedExperts
from posttrain.models.quantized import FORMATS, Format, quantize_experts

ERROR_LIMIT = 1e-5
LOSS_LIMIT = 0.01
MODEL = ExpertWork(
    num_experts=16, hidden_size=256, intermediate_size=512, rank=16, num_tokens=1024, num_layers=4
)
LAYER = ExpertWork(num_experts=16, hidden_size=256, intermediate_size=512, rank=16, num_tokens=1024)
NUM_STEPS = 50


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return |found - expected| / |expected|, computed in fp64."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def _randomise(model: nn.Module) -> None:
    """Give adapters weights that change the output, the same in every call."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * 0.1 * parameter.shape[-2] ** -0.5)


def errors(work: ExpertWork, dtype: torch.dtype) -> dict[str, float]:
    """Return relative errors of one step against transformers' forward with W + BA as weights.

    Computed in `dtype`: the loss; the logits, or a layer's output and input gradient; gradients of
    A, B and router.
    """
    model = ours(base_model(work, "cpu"), work).train()
    _randomise(model)
    routers = [p for n, p in model.named_parameters() if n.endswith("router.weight")]
    for router in routers:
        router.requires_grad_()
    inputs = inputs_of(work, "cpu")
    output = _output(model, inputs, work)
    loss = loss_of(model, inputs, work)
    loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = {name: cast(Tensor, p.grad) for name, p in trained.items()}

    plain = base_model(work, "cpu").to(dtype)
    twins = {name: p.detach().to(dtype).requires_grad_() for name, p in trained.items()}
    weights = _summed(plain, twins)
    other = tuple(
        t.detach().to(dtype).requires_grad_(t.requires_grad) if t.is_floating_point() else t
        for t in inputs
    )
    their_inputs = cast(tuple[Tensor, Tensor], other)

    def called(**arguments: Any) -> Any:
        return functional_call(plain, weights, (), arguments)

    if work.num_layers:
        answer = called(input_ids=their_inputs[0], labels=their_inputs[1])
        their_loss, their_output = answer.loss, answer.logits
    else:
        their_output = called(hidden_NH=their_inputs[0])
        their_loss = (their_output * their_inputs[1]).sum()
    their_loss.backward()

    result = {
        "loss": relative_error(loss.detach(), their_loss.detach()),
        "logits" if work.num_layers else "output": relative_error(output, their_output.detach()),
    }
    if not work.num_layers:
        result["dx"] = relative_error(cast(Tensor, inputs[0].grad), cast(Tensor, other[0].grad))
    for label, part in (("dA", ".lora_A."), ("dB", ".lora_B."), ("d router", "router.weight")):
        result[label] = max(
            relative_error(found[name], cast(Tensor, twins[name].grad))
            for name in found
            if part in name
        )
    return result


def _output(model: nn.Module, inputs: tuple[Tensor, Tensor], work: ExpertWork) -> Tensor:
    with torch.no_grad():
        return model(input_ids=inputs[0]).logits if work.num_layers else model(inputs[0].detach())


def _summed(plain: nn.Module, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with adapters added, differentiable in the factors, and the router's own."""
    weights: dict[str, Tensor] = {}
    for name, A in factors.items():
        module, _, rest = name.removeprefix("base_model.model.").partition(".lora_A.default.")
        if rest:
            B = factors[name.replace(".lora_A.", ".lora_B.")]
            delta = ALPHA_OVER_RANK * (A @ B if A.dim() == 3 else B @ A)
            weights[f"{module}.{rest}"] = plain.get_parameter(f"{module}.{rest}").detach() + delta
        elif name.endswith("router.weight"):
            weights[module] = A
    return weights


def bench_errors() -> Result:
    """Compare with transformers in fp32 and in fp64."""
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    for title, work in (("whole model", MODEL), ("one layer", LAYER)):
        for dtype in (torch.float32, torch.float64):
            label = f"{title}, transformers in {str(dtype).removeprefix('torch.')}"
            figures[label] = errors(work, dtype)
            rows += [[label, what, f"{error:.1e}"] for what, error in figures[label].items()]
    worst = max(error for found in figures.values() for error in found.values())
    return Result(
        name="experts-errors",
        title="Grouped experts in fp32 against transformers",
        columns=["against", "of", "relative error"],
        rows=rows,
        figures={"errors": figures, "worst": worst, "limit": ERROR_LIMIT},
        notes=[
            "16 experts, rank 16, 1,024 tokens, adapters that are not zero. Against: transformers' "
            "every expert on every token, with W + BA as weights; of dA, dB and the router's "
            "gradient the worst tensor.",
            f"Limit {ERROR_LIMIT:g}: {'kept' if worst <= ERROR_LIMIT else 'passed'}.",
        ],
    )


def bench_packed() -> Result:
    """Train the same adapter for NUM_STEPS on a bfloat16 base, and on the same base packed."""
    work = replace(MODEL, dtype=torch.bfloat16)
    logits: dict[str, Tensor] = {}
    losses: dict[str, list[float]] = {}
    for format in (None, *FORMATS):
        name = format or "bfloat16"
        model = _packed_model(work, format)
        logits[name] = _output(model, inputs_of(work, "cpu"), work).float()
        losses[name] = _train(model, work)
    rows, figures = [], {}
    for name, curve in losses.items():
        error = relative_error(logits[name], logits["bfloat16"])
        change = curve[-1] / losses["bfloat16"][-1] - 1
        figures[name] = {"logits": error, "losses": curve, "loss_change": change}
        rows.append([name, f"{error:.1%}", f"{curve[0]:.4f}", f"{curve[-1]:.4f}", f"{change:+.2%}"])
    within = abs(figures["fp8"]["loss_change"]) <= LOSS_LIMIT
    return Result(
        name="experts-packed",
        title="Routed experts packed: what it does to logits and training",
        columns=[
            "experts kept in",
            "logits, relative error",
            "first loss",
            f"loss after {NUM_STEPS} steps",
            "against bfloat16",
        ],
        rows=rows,
        figures={"formats": figures, "limit": LOSS_LIMIT, "within": within},
        notes=[
            "A random model learns one batch by heart: 4 layers, 16 experts, rank 16, AdamW at "
            "1e-3, the same start and data.",
            f"Limit for fp8: {LOSS_LIMIT:.0%}, {'kept' if within else 'passed'}.",
        ],
    )


def _packed_model(work: ExpertWork, format: Format | None) -> PeftModel:
    torch.manual_seed(3)
    model = ours(base_model(work, "cpu"), work).train()
    assert isinstance(model, PeftModel)
    if format is not None:
        for module in model.modules():
            if isinstance(module, GroupedExperts):
                quantize_experts(module, format)
    return model


def _train(model: nn.Module, work: ExpertWork) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    inputs = inputs_of(work, "cpu")
    curve: list[float] = []
    for _ in range(NUM_STEPS):
        loss = loss_of(model, inputs, work)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        curve.append(float(loss.detach()))
    return curve
