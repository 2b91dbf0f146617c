"""The count of activations against what PyTorch's allocator really gave out, on small models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import (
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
)
from trl.trainer.utils import add_fused_lm_head

from posttrain.memory.activations import Pass, pass_bytes
from posttrain.memory.shapes import read_shapes
from posttrain.models.experts import GroupedExperts, use_grouped_experts
from posttrain.models.lora import lora_config
from posttrain.models.quantized import Format, QuantizedLinear, quantize_experts
from posttrain.models.trl_shim import apply_trl_shim
from posttrain.recipe.models import Frozen, Lora, LoraTarget

WITHIN = 0.10
ALL: tuple[LoraTarget, ...] = ("attention", "mlp", "shared_expert", "experts")


class Case(NamedTuple):
    """A step: what trains, how weights are kept, what goes through."""

    dtype: Literal["float32", "bfloat16"]
    checkpointed: bool
    sequences: int = 1
    length: int = 512
    targets: tuple[LoraTarget, ...] | None = ALL
    """None trains every weight."""
    frozen: Format | None = None
    moe_every: int = 1
    """Past the number of layers none has experts."""
    has_head: bool = False
    """With TRL's head and loss, else the mean of the last states."""
    is_llama4: bool = True
    """Else the dense Llama of the generations before."""


CASES = [
    Case("bfloat16", True),
    Case("bfloat16", True, sequences=2),
    Case("bfloat16", True, length=1024),
    Case("bfloat16", False),
    Case("bfloat16", False, sequences=2, length=384),
    Case("float32", True),
    Case("float32", False, sequences=2),
    Case("float32", False, length=1024),
    Case("bfloat16", True, moe_every=2, length=768),
    Case("bfloat16", False, moe_every=2),
    Case("float32", False, moe_every=5),
    Case("bfloat16", True, targets=("attention",)),
    Case("bfloat16", False, targets=("attention", "shared_expert")),
    Case("bfloat16", False, targets=None),
    Case("float32", True, targets=None, sequences=2),
    Case("bfloat16", True, frozen="fp8", length=1024),
    Case("bfloat16", False, frozen="fp8"),
    Case("bfloat16", True, frozen="nf4", length=1024),
    Case("float32", True, frozen="fp8", sequences=2),
    Case("bfloat16", False, has_head=True, length=1024),
    Case("float32", True, has_head=True),
    Case("bfloat16", True, is_llama4=False),
    Case("float32", False, sequences=2, is_llama4=False),
    Case("bfloat16", False, targets=None, is_llama4=False),
]


def small(case: Case) -> PreTrainedConfig:
    common: dict[str, Any] = {
        "vocab_size": 2048 if case.has_head else 512,
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    if not case.is_llama4:
        return LlamaConfig(intermediate_size=1024, **common)
    return Llama4TextConfig(
        intermediate_size=512,
        intermediate_size_mlp=1024,
        num_local_experts=4,
        interleave_moe_layer_step=case.moe_every,
        **common,
    )


def build(case: Case) -> nn.Module:
    apply_trl_shim()
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    kind: Any = Llama4ForCausalLM if case.is_llama4 else LlamaForCausalLM
    model = kind._from_config(small(case), attn_implementation="sdpa", dtype=dtype)
    if case.has_head:
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    use_grouped_experts(model)
    if case.targets is None:
        return model
    model.requires_grad_(False)
    if case.frozen is not None:
        pack(model, case.frozen)
    dense: list[LoraTarget] = ["attention", "mlp"]
    targets = list(case.targets) if case.is_llama4 else dense
    return get_peft_model(model, lora_config(Lora(rank=8, targets=targets), model))


def pack(model: nn.Module, format: Format) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, GroupedExperts):
            quantize_experts(module, format)
        elif isinstance(module, nn.Linear) and ".layers." in name and "router" not in name:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, QuantizedLinear(module, format))


def step(model: Any, case: Case) -> None:
    ids = torch.randint(3, 500, (case.sequences, case.length))
    mask = torch.ones_like(ids)
    if case.sequences > 1:
        mask[0, -case.length // 4 :] = 0  # else transformers sees that no mask is needed
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    with torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "bfloat16"):
        if case.has_head:
            loss = -model(**inputs, labels=ids, fused_lm_head=True).log_probs.sum()
        else:
            body = model.get_base_model().model if case.targets else model.model
            loss = body(**inputs).last_hidden_state.float().mean()
    loss.backward()


def measured_peak(model: Any, case: Case) -> int:
    """Bytes above what was there: every allocation and release, summed in order."""
    model.train()
    if case.checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    step(model, case)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(model, case)
    results: Any = profiler.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert events
    return peak


def counted_peak(case: Case) -> int:
    shapes = read_shapes(small(case).to_dict())
    assert shapes is not None
    run = Pass(
        sequences=case.sequences,
        length=case.length,
        value=2 if case.dtype == "bfloat16" else 4,
        is_masked=case.sequences > 1,
        rank=8 if case.targets else 0,
        targets=case.targets or (),
        is_full=case.targets is None,
        frozen=Frozen(experts=case.frozen, linears=case.frozen) if case.frozen else None,
        has_kernels=False,
    )
    counted = pass_bytes(shapes, run, is_checkpointed=case.checkpointed)
    return counted.peak if case.has_head else replace(counted, logits=0).peak


# Two are enough to see a change; the others take a minute.
MARKED = [
    pytest.param(case, marks=() if at in (0, 5) else pytest.mark.slow, id=str(at))
    for at, case in enumerate(CASES)
]


@pytest.mark.parametrize("case", MARKED)
def test_the_count_is_within_ten_per_cent_of_the_allocator(case: Case) -> None:
    measured, counted = measured_peak(build(case), case), counted_peak(case)
    assert measured > 5e6
    assert counted == pytest.approx(measured, rel=WITHIN), f"{counted / measured - 1:+.1%}"
