"""Bytes of a forward and backward pass: saved activations, the layer at work, the loss.

Counted from the code that runs: transformers' Llama 4 layers with the experts of models/ and PEFT's
linear LoRA, under autocast if weights are bfloat16. `T` is the number of tokens in a forward pass.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from posttrain.memory.shapes import Shapes, matrices
from posttrain.recipe.models import Frozen, LoraTarget

FP32 = 4
INDEX = 8
"""Bytes of an int64 index."""
VOCABULARY_TILE = 32768
TOKEN_TILE = 4096
"""Tiles in which TRL 1.16's fused head computes logits, so that all are never in memory
(trl/kernels/chunked_logprob.py, trl/trainer/utils.py)."""
TORCH_TILE = 29
"""Bytes per logit of a tile without Triton: seven fp32 copies and a mask."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One forward and backward pass through a model."""

    sequences: int
    length: int
    value: int
    """Bytes of a value in matrix products: 2 under autocast to bfloat16, else 4."""
    is_masked: bool
    """Attention gets a mask: sequences of different lengths in one pass, or packed ones."""
    rank: int = 0
    targets: Collection[LoraTarget] = ()
    """LoRA targets; empty with full training."""
    is_full: bool = False
    frozen: Frozen | None = None
    has_kernels: bool = True
    """Grouped products are CUDA kernels, for which a quantised layer is dequantised as a whole."""

    @property
    def tokens(self) -> int:
        """Return the tokens of all sequences."""
        return self.sequences * self.length


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerBytes:
    """Bytes that a layer needs besides its weights."""

    kept: int
    """Saved from its forward to its backward pass, its input included."""
    working: int
    """Bytes needed in addition, at the peak of its backward pass."""
    unpacking: int = 0
    """Dequantised weights, a part of `working`."""


def layer_bytes(shapes: Shapes, layer: int, run: Pass) -> LayerBytes:
    """Count the bytes of one layer."""
    T, H, c = run.tokens, shapes.hidden_size, run.value
    always = _norms(shapes, run) + _attention(shapes, layer, run)
    is_moe = shapes.is_moe[layer]
    target: LoraTarget = "shared_expert" if is_moe else "mlp"
    inner = shapes.expert_size if is_moe else shapes.dense_size
    dense = _swiglu_kept(run, target, H, inner)
    # Forward: PEFT's cast of the down projection's input to fp32, beside what the layer works on.
    casting = (c + FP32) * T * inner + 4 * c * T * H if target in run.targets and c != FP32 else 0
    # Backward: the product's gradient and those of its factors; the product, if kept, is gone.
    gradients = c * T * H + (3 - _trains(run, target)) * c * T * inner
    unpacked = _unpacking(shapes, layer, target, run)
    moments = [(max(casting, gradients) + unpacked, unpacked)]
    routed = 0
    if is_moe:
        routed = _experts_kept(shapes, run)
        # The shared expert's backward pass comes first, so what it kept is gone.
        swiglu = c * T * H + 6 * c * T * inner - dense - _trains(run, "experts") * c * T * inner
        unpacked = _unpacking(shapes, layer, "experts", run)
        moments += [(swiglu, 0), (c * T * H - dense + unpacked, unpacked)]
    working, unpacking = max(moments)
    return LayerBytes(kept=always + dense + routed, working=working, unpacking=unpacking)


def _unpacking(shapes: Shapes, layer: int, target: LoraTarget, run: Pass) -> int:
    """Count the largest dequantised weight and the temporaries of models/quantized.py.

    Experts are dequantised one by one, into one tensor if a kernel takes them all.
    """
    frozen = run.frozen
    kind = None if frozen is None else frozen.experts if target == "experts" else frozen.linears
    if kind is None:
        return 0
    experts, fan_in, fan_out = max(
        matrices(shapes, layer)[target], key=lambda w: w[0] * w[1] * w[2]
    )
    one = fan_in * fan_out
    besides = run.value if kind == "fp8" else 1 + INDEX  # a level's index is a 64-bit one
    whole = experts if run.has_kernels and experts > 1 else 0
    return run.value * whole * one + (run.value + besides) * one


def _trains(run: Pass, target: LoraTarget) -> bool:
    return run.is_full or target in run.targets


def _norms(shapes: Shapes, run: Pass) -> int:
    """Count two RMS norms: each saves its input in fp32, and its output if its weight trains."""
    each = FP32 + (run.value if run.is_full else 0)
    return 2 * each * run.tokens * shapes.hidden_size


def _linear_inputs(run: Pass, target: LoraTarget, width: int, *, layers: int, is_kept: bool) -> int:
    """Count what `layers` linear layers with the same input save of it.

    PEFT casts the input to the adapter's fp32 and autocast casts it back, for each layer again. In
    fp32 it is saved once, unless something else saves it (`is_kept`).
    """
    if target in run.targets:
        inner = layers * run.tokens * run.rank * run.value
        if run.value != FP32:
            return layers * run.value * run.tokens * width + inner
        return inner + (0 if is_kept else run.value * run.tokens * width)
    return run.value * run.tokens * width if run.is_full and not is_kept else 0


def _attention(shapes: Shapes, layer: int, run: Pass) -> int:
    T, c = run.tokens, run.value
    wide, narrow = shapes.attention_size, shapes.kv_size
    kept = _linear_inputs(run, "attention", shapes.hidden_size, layers=3, is_kept=False)
    if shapes.has_qk_norm and shapes.is_rotary[layer]:
        kept += FP32 * T * (wide + narrow)
    kept += c * T * wide + 2 * c * T * (wide if run.is_masked else narrow)  # queries, keys, values
    kept += c * T * wide + FP32 * T * shapes.num_heads  # the output and its log-sum-exp
    if run.is_masked:
        kept += c * run.sequences * run.length**2
    return kept + _linear_inputs(run, "attention", wide, layers=1, is_kept=True)


def _swiglu_kept(run: Pass, target: LoraTarget, hidden: int, inner: int) -> int:
    """Count gate, its activation and up, and what the three linear layers save of their inputs."""
    return (
        _linear_inputs(run, target, hidden, layers=2, is_kept=False)
        + 3 * run.value * run.tokens * inner
        + _linear_inputs(run, target, inner, layers=1, is_kept=False)
    )


def _experts_kept(shapes: Shapes, run: Pass) -> int:
    """Count routed rows before and after scaling, gate and up, and what trained weights save."""
    T, c, H, inner = (
        run.tokens * shapes.num_experts_per_tok,
        run.value,
        shapes.hidden_size,
        shapes.expert_size,
    )
    kept = 2 * c * T * H + 2 * c * T * inner + T * (5 * INDEX + 2 * FP32)
    if _trains(run, "experts"):
        kept += c * T * (H + inner)
    if "experts" in run.targets:
        kept += 2 * c * T * run.rank
        if c != FP32:  # the factors, cast
            kept += c * shapes.num_experts * run.rank * (2 * H + 3 * inner)
    return kept


@dataclass(frozen=True, kw_only=True, slots=True)
class PassBytes:
    """Bytes that a pass needs at its peak, besides weights."""

    activations: int
    """Saved for the backward pass by all layers; with checkpointing each layer's input alone."""
    live_layer: int
    """Bytes needed by the layer at work; with checkpointing what it saves is included."""
    unpacking: int
    """Dequantised weights of that layer."""
    logits: int
    """A tile of logits and the gradient of the last hidden states; not needed by a layer."""

    @property
    def peak(self) -> int:
        """Return the peak: the layer at work and the loss take turns."""
        return self.activations + max(self.live_layer + self.unpacking, self.logits)


def pass_bytes(shapes: Shapes, run: Pass, *, is_checkpointed: bool) -> PassBytes:
    """Count a pass; `is_checkpointed` saves only the layers' inputs and runs each forward twice."""
    layers = [layer_bytes(shapes, layer, run) for layer in range(shapes.num_layers)]
    stream = run.value * run.tokens * shapes.hidden_size
    # Shared by all layers: masks as booleans and rotary angles as complex numbers.
    common = 2 * run.is_masked * run.sequences * run.length**2
    common += 2 * FP32 * run.tokens * shapes.head_dim // 2
    if is_checkpointed:
        worst = max(layers, key=lambda one: one.kept + one.working)
        activations = shapes.num_layers * stream
        live = worst.kept + worst.working
    else:
        worst = max(layers, key=lambda one: one.working)
        activations = sum(one.kept for one in layers)
        live = worst.working
    return PassBytes(
        activations=activations + common,
        live_layer=live - worst.unpacking,
        unpacking=worst.unpacking,
        logits=_logits(shapes, run),
    )


def _logits(shapes: Shapes, run: Pass) -> int:
    tile = min(run.tokens, TOKEN_TILE) * run.value * VOCABULARY_TILE
    hidden = run.tokens * shapes.hidden_size
    states = (FP32 + 3 * run.value + FP32) * hidden  # the last norm's input; its output; gradient
    if not run.has_kernels:
        width = min(shapes.vocab_size, VOCABULARY_TILE)
        tile += min(run.tokens, TOKEN_TILE) * width * TORCH_TILE
    return tile + states
