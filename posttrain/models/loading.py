"""Base models in memory as they train: experts grouped, frozen weights quantised if asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Llama4ForCausalLM,
    PreTrainedModel,
)

from posttrain.errors import SetupError
from posttrain.memory.shapes import LLAMA4_TYPES
from posttrain.models.checkpoint import checkpoint_shapes, checkpoint_tensors, is_text, text_name
from posttrain.models.experts import GroupedExperts, use_grouped_experts
from posttrain.models.quantized import FORMATS, QuantizedLinear, format_of
from posttrain.models.sharded import reads_weights
from posttrain.models.trl_shim import apply_trl_shim
from posttrain.recipe.models import Frozen


def load_base(
    base: Path, *, dtype: str, frozen: Frozen | None = None, sharded: bool = False
) -> PreTrainedModel:
    """Load a causal language model whose routed experts run on their own tokens only.

    A multimodal Llama 4 checkpoint is loaded as its language model alone. With `frozen` (Llama 4
    only) tensors are read and quantised one by one, so the host never holds more than the quantised
    model and one tensor. With `sharded` the model stays in host memory, and in every process but
    the first on the meta device. Raises SetupError if weights are missing, cut short or laid out
    otherwise.
    """
    device: Any = "cpu"
    if sharded:
        device = "cpu" if reads_weights() else "meta"
    elif torch.cuda.is_available():
        device = torch.cuda.current_device()
    apply_trl_shim()
    config = AutoConfig.from_pretrained(base)
    text = config.get_text_config()
    is_llama4 = config.model_type in LLAMA4_TYPES
    if frozen is not None:
        if not is_llama4:
            raise SetupError(
                f"model.frozen quantises Llama 4 only, and {base} is a {config.model_type} model",
                hint="remove model.frozen from the recipe",
            )
        return _load_quantized(base, text, getattr(torch, dtype), frozen, device)
    if is_llama4:
        _check_layout(base, text)
    settings: dict[str, Any] = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
    if device == "meta":
        model = _empty(text if is_llama4 else config, **settings)
    else:
        loader = Llama4ForCausalLM if is_llama4 else AutoModelForCausalLM
        model = loader.from_pretrained(
            base, device_map=None if device == "cpu" else {"": device}, **settings
        )
    use_grouped_experts(model)
    return model


def _empty(config: Any, **settings: Any) -> PreTrainedModel:
    """Build the model without weights, but with the buffers computed from its configuration."""
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config, **settings)


def _check_layout(base: Path, config: Any) -> None:
    """Raise SetupError unless the text weights have the names and shapes the config implies."""
    expected = {name: list(p.shape) for name, p in _empty(config).named_parameters()}
    found = {text_name(n): s for n, s in checkpoint_shapes(base).items() if is_text(n)}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    missing = sorted(expected.keys() - found.keys())
    if missing:
        per_expert = any(".experts.0." in name for name in found)
        raise SetupError(
            f"{base} has no {missing[0]}" + (f" and {len(missing) - 1} more" * (len(missing) > 1)),
            hint="its experts are stored one by one: save it with fused experts, as transformers "
            "does"
            if per_expert
            else "download the whole checkpoint again",
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise SetupError(
                f"{base}: {name} has shape {found[name]}, but its configuration implies {shape}",
                hint="save the model with transformers' save_pretrained: fused experts are "
                "(experts, in, out), with gate before up",
            )


def _load_quantized(
    base: Path, config: Any, dtype: torch.dtype, frozen: Frozen, device: Any
) -> PreTrainedModel:
    _check_layout(base, config)
    model = _empty(config, attn_implementation="sdpa")
    use_grouped_experts(model)
    for name, tensor in _tensors(base, device):
        if is_text(name):
            _place(model, text_name(name), tensor.to(device, dtype), frozen)
    if config.tie_word_embeddings:
        model.tie_weights()
    if device != "meta":
        model.to(device)
    return model.requires_grad_(False)


def _tensors(base: Path, device: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the checkpoint's tensors; for the meta device, only their shapes are read."""
    if device != "meta":
        yield from checkpoint_tensors(base)
        return
    for name, shape in checkpoint_shapes(base).items():
        yield name, torch.empty(shape, device="meta")


def _place(model: nn.Module, name: str, tensor: Tensor, frozen: Frozen) -> None:
    """Put one weight into its module, quantised if `frozen` says so."""
    module_name, _, leaf = name.rpartition(".")
    module = model.get_submodule(module_name)
    format = format_of(name, frozen)
    if format is not None and isinstance(module, GroupedExperts):
        delattr(module, leaf)
        setattr(module, leaf, FORMATS[format](tensor))
        return
    setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
    if format is not None:
        parent_name, _, child = module_name.rpartition(".")
        quantized = QuantizedLinear(cast(nn.Linear, module), format)
        setattr(model.get_submodule(parent_name), child, quantized)
