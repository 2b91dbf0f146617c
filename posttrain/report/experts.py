"""A mixture of experts in training: load, dead experts, router, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.report.blocks import Block, Cell, Figure, Table, TableRow, number, percent
from posttrain.report.charts import curve_panel
from posttrain.report.read import series
from posttrain.report.svg import stage_colour

WORST: Sequence[tuple[str, str, bool]] = (
    ("tokens of the fullest expert over the mean", "moe/load_max", False),
    ("evenness of the load", "moe/load_entropy", True),
    ("experts without a token", "moe/dead", True),
)
OF_A_LAYER: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "load_max": ("fullest over mean", number),
    "load_entropy": ("evenness", percent),
    "dead": ("without a token", percent),
    "router_rms": ("router logits, RMS", number),
}


def expert_blocks(rows: Sequence[Mapping[str, Any]], stage: str) -> list[Block]:
    """Draw the worst layer and gradients by kind, and tabulate layers; nothing for a dense model.

    `rows` are those of metrics.jsonl.
    """
    colour = stage_colour(stage)
    panels = [
        curve_panel(f"{title}, worst layer", found, share=share, colour=colour)
        for title, name, share in WORST
        if (found := series(rows, name))
    ]
    if not panels:
        return []
    kinds = sorted({key.partition("/grad_norm/")[2] for row in rows for key in row} - {""})
    panels += [
        curve_panel(
            f"gradient norm, {kind.replace('_', ' ')}",
            found,
            share=False,
            colour=colour,
        )
        for kind in kinds
        if (found := series(rows, f"grad_norm/{kind}"))
    ]
    return [Figure(title="Mixture of experts", panels=panels), _layers(rows, stage)]


def _layers(rows: Sequence[Mapping[str, Any]], stage: str) -> Table:
    """Return the layers' metrics as last logged."""
    prefix = f"{stage}/moe/layer_"
    last = next(row for row in reversed(rows) if any(key.startswith(prefix) for key in row))
    layers = sorted({int(k.removeprefix(prefix).split("/")[0]) for k in last if prefix in k})
    return Table(
        title="Experts by layer",
        header=["layer", *(title for title, _ in OF_A_LAYER.values())],
        rows=[
            TableRow(
                head=str(layer),
                cells=[
                    Cell(text=show(float(last[f"{prefix}{layer}/{name}"])))
                    for name, (_, show) in OF_A_LAYER.items()
                ],
            )
            for layer in layers
        ],
        caption=f"As logged at step {number(float(last['step']))}. Fullest over mean: 1 is even. "
        "Evenness: entropy of the load over its largest.",
    )
