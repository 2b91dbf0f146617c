"""A micro-batch without what cannot move the loss: it costs as much to compute as what can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

SUMMED_LOSSES = frozenset({"dapo", "cispo", "vespo", "bnpo"})
"""TRL's loss types that sum over the tokens that count; the others also divide by the rows."""


def compact(inputs: Mapping[str, Any], *, drop_rows: bool) -> dict[str, Any]:
    """TRL's inputs without columns of padding alone, and without rows none of whose tokens counts.

    Prompts (B, P) are padded on the left, all else (B, C) on the right. Rows are left out where
    `drop_rows`, and one stays. Inputs with more than text are given back as they are.
    """
    told = dict(inputs)
    if "token_type_ids" in told or "num_images" in told:
        return told
    if drop_rows:
        counts = told["completion_mask"] * told.get("tool_mask", 1)
        kept = counts.any(dim=1)
        kept[0] |= ~kept.any()
        told = {key: value[kept] if _has_rows(value) else value for key, value in told.items()}
    whole = told["completion_ids"].size(1)
    start = _first(told["prompt_mask"])
    end = whole - _first(told["completion_mask"].flip(1))
    for key, value in told.items():
        if _has_rows(value) and value.dim() == 2:
            if key.startswith("prompt_"):
                told[key] = value[:, start:]
            elif value.size(1) == whole:
                told[key] = value[:, :end]
    return told


def _has_rows(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def _first(mask: torch.Tensor) -> int:
    """The first column that is not masked in all rows."""
    return int(mask.any(dim=0).int().argmax())
