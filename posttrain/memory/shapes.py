"""A model's shapes from its configuration alone: weights by kind, FLOPs and KV cache per token."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.recipe.models import Lora, LoraTarget

LLAMA4_TYPES = ("llama4", "llama4_text")
CONFIGS = Path(__file__).parent / "configs"
PUBLISHED = {
    "meta-llama/Llama-4-Scout-17B-16E": "llama4_scout",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": "llama4_scout",
    "meta-llama/Llama-4-Maverick-17B-128E": "llama4_maverick",
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": "llama4_maverick",
}
"""Hub name -> file in configs/, so that a plan needs no download. The files omit what differs
between a base and its Instruct model (rotary scaling, longest context): shapes do not depend on it.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """The language model of a Llama-family checkpoint, dense or mixture of experts."""

    vocab_size: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dense_size: int
    """Intermediate size of the MLP in layers without experts."""
    expert_size: int
    """Intermediate size of a routed expert, and of the shared one."""
    num_experts: int
    num_experts_per_tok: int
    is_moe: tuple[bool, ...]
    """Flags by layer: True if it has routed experts."""
    is_rotary: tuple[bool, ...]
    """Flags by layer: True if its attention has rotary positions and, with `chunk`, is chunked."""
    chunk: int | None
    """Tokens of an attention chunk."""
    has_qk_norm: bool
    is_tied: bool
    """The language-model head shares the embedding's weight."""
    biases: int = 0
    """Biases in attention and MLPs of all layers together."""

    @property
    def num_layers(self) -> int:
        """Return the number of layers."""
        return len(self.is_moe)

    @property
    def attention_size(self) -> int:
        """Return the width of the queries."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Return the width of the keys, which is also the values'."""
        return self.num_kv_heads * self.head_dim


def read_shapes(config: Mapping[str, Any]) -> Shapes | None:
    """Read the shapes from a config.json's content; None for a model family other than Llama.

    Missing keys take the defaults of transformers' Llama4TextConfig and LlamaConfig.
    """
    text: Mapping[str, Any] = config.get("text_config") or config
    kind = config.get("model_type")
    if kind in LLAMA4_TYPES:
        return _llama4(text)
    return _llama(text) if kind == "llama" else None


def shapes_in(folder: Path) -> Shapes | None:
    """Read the shapes of a checkpoint folder."""
    return read_shapes(json.loads((folder / "config.json").read_text()))


def published_shapes(name: str) -> Shapes | None:
    """Return the shapes of a hub model in PUBLISHED, None for any other."""
    found = PUBLISHED.get(name)
    if found is None:
        return None
    return read_shapes(json.loads((CONFIGS / f"{found}.json").read_text(encoding="utf-8")))


def _llama4(text: Mapping[str, Any]) -> Shapes:
    layers: int = text.get("num_hidden_layers", 48)
    step: int = text.get("interleave_moe_layer_step", 1)
    with_experts: Collection[int] | None = text.get("moe_layers")
    if with_experts is None:
        with_experts = range(step - 1, layers, step)
    every: int = text.get("no_rope_layer_interval", 4)
    rotary: list[int] = text.get("no_rope_layers") or [
        int((layer + 1) % every != 0) for layer in range(layers)
    ]
    heads: int = text.get("num_attention_heads", 40)
    hidden: int = text.get("hidden_size", 5120)
    return Shapes(
        vocab_size=text.get("vocab_size", 202048),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=text.get("num_key_value_heads", 8),
        head_dim=text.get("head_dim") or hidden // heads,
        dense_size=text.get("intermediate_size_mlp", 16384),
        expert_size=text.get("intermediate_size", 8192),
        num_experts=text.get("num_local_experts", 16),
        num_experts_per_tok=text.get("num_experts_per_tok", 1),
        is_moe=tuple(layer in with_experts for layer in range(layers)),
        is_rotary=tuple(bool(flag) for flag in rotary),
        chunk=text.get("attention_chunk_size", 8192),
        has_qk_norm=text.get("use_qk_norm", True),
        is_tied=text.get("tie_word_embeddings", False),
        biases=_attention_biases(text, layers, heads, hidden),
    )


def _llama(text: Mapping[str, Any]) -> Shapes:
    layers: int = text.get("num_hidden_layers", 32)
    heads: int = text.get("num_attention_heads", 32)
    hidden: int = text.get("hidden_size", 4096)
    width: int = text.get("intermediate_size", 11008)
    biases = _attention_biases(text, layers, heads, hidden)
    if text.get("mlp_bias"):
        biases += layers * (2 * width + hidden)
    return Shapes(
        vocab_size=text.get("vocab_size", 32000),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or hidden // heads,
        dense_size=width,
        expert_size=0,
        num_experts=1,
        num_experts_per_tok=1,
        is_moe=(False,) * layers,
        is_rotary=(True,) * layers,
        chunk=None,
        has_qk_norm=False,
        is_tied=text.get("tie_word_embeddings", False),
        biases=biases,
    )


def _attention_biases(text: Mapping[str, Any], layers: int, heads: int, hidden: int) -> int:
    if not text.get("attention_bias"):
        return 0
    head: int = text.get("head_dim") or hidden // heads
    return layers * ((heads + 2 * (text.get("num_key_value_heads") or heads)) * head + hidden)


def matrices(shapes: Shapes, layer: int) -> dict[LoraTarget, list[tuple[int, int, int]]]:
    """Return a layer's weights by LoRA target, each as (experts, in, out); experts is 1 if dense.

    Gate and up of the routed experts are one matrix, as in transformers.
    """
    hidden, width, heads = shapes.hidden_size, shapes.attention_size, shapes.kv_size
    found: dict[LoraTarget, list[tuple[int, int, int]]] = {
        "attention": [
            (1, hidden, width),
            (1, hidden, heads),
            (1, hidden, heads),
            (1, width, hidden),
        ]
    }
    if not shapes.is_moe[layer]:
        found["mlp"] = _swiglu(hidden, shapes.dense_size)
        return found
    experts, inner = shapes.num_experts, shapes.expert_size
    found["shared_expert"] = _swiglu(hidden, inner)
    found["experts"] = [(experts, hidden, 2 * inner), (experts, inner, hidden)]
    found["router"] = [(1, hidden, experts)]
    return found


def _swiglu(hidden: int, inner: int) -> list[tuple[int, int, int]]:
    return [(1, hidden, inner), (1, hidden, inner), (1, inner, hidden)]


def parameters_by_kind(shapes: Shapes) -> dict[str, int]:
    """Count weights by kind (embeddings, lm_head, norms, each LoRA target), tied ones once."""
    embedding = shapes.vocab_size * shapes.hidden_size
    kinds: dict[str, int] = {"embeddings": embedding}
    for layer in range(shapes.num_layers):
        for target, weights in matrices(shapes, layer).items():
            kinds[target] = kinds.get(target, 0) + sum(e * i * o for e, i, o in weights)
    if shapes.biases:
        kinds["biases"] = shapes.biases
    kinds["norms"] = (2 * shapes.num_layers + 1) * shapes.hidden_size
    if not shapes.is_tied:
        kinds["lm_head"] = embedding
    return kinds


def adapter_parameters(shapes: Shapes, lora: Lora) -> dict[str, int]:
    """Count the weights of a LoRA section's adapters by target: r (in + out) per matrix."""
    found: dict[str, int] = {}
    for target in dict.fromkeys(lora.targets):
        weights = [
            weight
            for layer in range(shapes.num_layers)
            for weight in matrices(shapes, layer).get(target, [])
        ]
        found[target] = sum(lora.rank * e * (i + o) for e, i, o in weights)
    return found


def active_parameters(shapes: Shapes) -> int:
    """Count the weights of matrices that one token is multiplied with.

    Of the routed experts these are its own; the embedding is looked up, not multiplied.
    """
    kinds = parameters_by_kind(shapes)
    dense = sum(kinds.get(kind, 0) for kind in ("attention", "mlp", "shared_expert", "router"))
    routed = kinds.get("experts", 0) * shapes.num_experts_per_tok // shapes.num_experts
    return dense + routed + shapes.vocab_size * shapes.hidden_size


def active_adapter_parameters(shapes: Shapes, lora: Lora) -> int:
    """Count the weights of adapters that one token is multiplied with."""
    found = adapter_parameters(shapes, lora)
    routed = found.pop("experts", 0) * shapes.num_experts_per_tok // shapes.num_experts
    return sum(found.values()) + routed


def kv_bytes_per_token(shapes: Shapes, bytes_per_value: int) -> int:
    """Return the bytes of one token's keys and values over all layers."""
    return 2 * shapes.num_layers * shapes.kv_size * bytes_per_value


@dataclass(frozen=True, kw_only=True, slots=True)
class FlopsPerToken:
    """Floating-point operations for one token; a multiply-add counts as two.

    Matrix products and attention's two products; norms, rotary and softmax are left out, as usual.
    """

    forward: float
    frozen: float
    """Forward and backward pass through a frozen base, without gradients of weights."""
    frozen_recomputed: float
    """The same with gradient checkpointing, which runs the forward pass twice."""
    full: float
    """Forward and backward pass with every weight trained."""
    adapters: float
    """Forward and backward pass of the adapters, to be added."""


def flops_per_token(
    shapes: Shapes, *, sequence_length: int, adapter_weights: int = 0
) -> FlopsPerToken:
    """Count FLOPs as PaLM's appendix B does, but only the causal half of attention.

    A layer with chunked attention sees at most one chunk. `adapter_weights` is the number of
    adapter weights that one token is multiplied with.
    """
    linear = 2.0 * active_parameters(shapes)
    chunk = min(sequence_length, shapes.chunk or sequence_length)
    spans = [chunk if rotary else sequence_length for rotary in shapes.is_rotary]
    attention = sum(4.0 * (span / 2) * shapes.attention_size for span in spans)
    return FlopsPerToken(
        forward=linear + attention,
        frozen=2 * linear + 3 * attention,
        frozen_recomputed=3 * linear + 4 * attention,
        full=3 * (linear + attention),
        adapters=6.0 * adapter_weights,
    )
