"""Metrics of a mixture of experts in training: expert load, router scale, gradient norms."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from posttrain.models.experts import RoutedMoe, moe_layers
from posttrain.models.lora import target_of
from posttrain.models.sharded import full_tensor


class MoeMonitor:
    """Counts the router's choices in a model's MoE layers between two calls of `take`.

    Counts cover this process's own tokens, in training mode only.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = moe_layers(model)
        self._load_E: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        self._num_logits: dict[str, int] = {}
        for name, moe in self._layers.items():
            moe.watch = self._watcher(name, moe)

    def _watcher(self, name: str, moe: RoutedMoe):
        def watch(chosen_NK: Tensor, logits_NE: Tensor) -> None:
            if not moe.training:
                return
            with torch.no_grad():
                load_E = torch.zeros(moe.num_experts, dtype=torch.long, device=chosen_NK.device)
                ones = torch.ones_like(chosen_NK.flatten())
                load_E.index_add_(0, chosen_NK.flatten(), ones)
                squares = logits_NE.float().square().sum()
            self._load_E[name] = self._load_E.get(name, 0) + load_E
            self._squares[name] = self._squares.get(name, 0) + squares
            self._num_logits[name] = self._num_logits.get(name, 0) + logits_NE.numel()

        return watch

    def take(self) -> dict[str, float]:
        """Return the metrics since the last call, by layer and the worst over layers; reset counts.

        `load_max`: tokens of the fullest expert over the mean (1 is even, E is one expert alone).
        `load_entropy`: entropy of the load over log E (1 is even). `dead`: share of experts without
        a token. `router_rms`: root mean square of the router's logits. Empty if nothing was run.
        """
        found: dict[str, float] = {}
        for name, load_E in self._load_E.items():
            layer = name.split(".layers.")[-1].split(".")[0]
            share_E = load_E.double() / load_E.sum()
            found[f"moe/layer_{layer}/load_max"] = float(share_E.max()) * len(share_E)
            found[f"moe/layer_{layer}/load_entropy"] = _entropy(share_E)
            found[f"moe/layer_{layer}/dead"] = float((load_E == 0).double().mean())
            mean_square = float(self._squares[name]) / self._num_logits[name]
            found[f"moe/layer_{layer}/router_rms"] = math.sqrt(mean_square)
        for metric, worst in (("load_max", max), ("load_entropy", min), ("dead", max)):
            values = [v for key, v in found.items() if key.endswith(f"/{metric}")]
            if values:
                found[f"moe/{metric}"] = worst(values)
        self._load_E, self._squares, self._num_logits = {}, {}, {}
        return found

    def close(self) -> None:
        """Stop counting."""
        for moe in self._layers.values():
            moe.watch = None


def _entropy(share_E: Tensor) -> float:
    if len(share_E) == 1:
        return 1.0
    return float(-torch.xlogy(share_E, share_E).sum()) / math.log(len(share_E))


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Return the norm of the gradients by kind of weight (attention, experts, router, ...).

    With a sharded model every process must call it.
    """
    squares: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            kind = weight_kind(_weight_name(name))
            square = full_tensor(parameter.grad.float().square().sum())
            squares[kind] = squares.get(kind, 0) + square
    return {f"grad_norm/{kind}": float(total.sqrt()) for kind, total in squares.items()}


def _weight_name(name: str) -> str:
    """Return the name of the base weight that a parameter is, or that its adapter adapts."""
    module = name.removeprefix("module.").removeprefix("base_model.model.").split(".lora_")[0]
    return f"{module}.weight" if ".lora_" in name else module


def weight_kind(weight_name: str) -> str:
    """Return the kind of a weight: a LoRA target, norms, lm_head or embeddings."""
    module = weight_name.rsplit(".", 1)[0]
    if module.endswith("lm_head"):
        return "lm_head"
    return target_of(module) or ("norms" if "norm" in weight_name else "embeddings")
