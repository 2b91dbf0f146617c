"""A whole forward and backward pass: activations, the live layer, the loss."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.memory.layers import FP32, Pass, layer_bytes
from posttrain.memory.shapes import Shapes

VOCABULARY_TILE = 32768
TOKEN_TILE = 4096
"""TRL 1.16 never has all logits: its fused head goes through them in tiles (trl/kernels/
chunked_logprob.py, trl/trainer/utils.py)."""
TORCH_TILE = 29
"""Bytes for each logit of a tile where there is no Triton: seven fp32 copies and a mask."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PassBytes:
    """What a pass needs besides weights, at its worst moment."""

    activations: int
    """Kept for the backward pass: of every layer, or with checkpointing each layer's input."""
    live_layer: int
    """What the layer at work needs besides; with checkpointing what it keeps, too."""
    unpacking: int
    """Packed weights of that layer, unpacked."""
    logits: int
    """The tile, and the gradient of the last hidden states; not needed while a layer works."""

    @property
    def peak(self) -> int:
        """The layer at work and the loss take turns."""
        return self.activations + max(self.live_layer + self.unpacking, self.logits)


def pass_bytes(shapes: Shapes, run: Pass, *, is_checkpointed: bool) -> PassBytes:
    """Count a pass; `is_checkpointed` keeps a layer's input alone and runs it forward twice."""
    layers = [layer_bytes(shapes, layer, run) for layer in range(shapes.num_layers)]
    stream = run.value * run.tokens * shapes.hidden_size
    # Shared by all layers: masks as booleans, rotary angles as complex numbers; the last norm's.
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
