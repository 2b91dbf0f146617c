"""Configurations of published models, so that a plan needs no download: shapes, not models."""

from __future__ import annotations

import json
from pathlib import Path

from posttrain.memory.shapes import Shapes, read_shapes

CONFIGS = Path(__file__).parent / "configs"
PUBLISHED = {
    "meta-llama/Llama-4-Scout-17B-16E": "llama4_scout",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": "llama4_scout",
    "meta-llama/Llama-4-Maverick-17B-128E": "llama4_maverick",
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": "llama4_maverick",
}
"""Hub name -> file in configs/. What tells a base from its Instruct model (the rotary scaling, the
longest context) has no bearing on shapes and is left out."""


def published_shapes(name: str) -> Shapes | None:
    """The shapes of a hub model that is known here."""
    found = PUBLISHED.get(name)
    if found is None:
        return None
    return read_shapes(json.loads((CONFIGS / f"{found}.json").read_text(encoding="utf-8")))
