"""A curriculum benchmark's plots: gain in held-out pass@1 over generated tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.bench.bed_rows import Row


def write_plots(rows: Sequence[Row], folder: Path, stem: str) -> list[Path]:
    """One SVG per pool: gain in held-out pass@1 over generated tokens, means over seeds.

    Gains, as arms with other seeds start from other policies.
    """
    import altair as alt

    written: list[Path] = []
    for pool in dict.fromkeys(row["pool"] for row in rows):
        mine = [row for row in rows if row["pool"] == pool]
        most = float(np.mean([r["spent"]["tokens"] for r in mine if r["arm"] == "uniform"]))
        values: list[dict[str, Any]] = []
        for arm in dict.fromkeys(row["arm"] for row in mine):
            curves = [
                np.array(row["curve"]) - [0.0, row["start"]] for row in mine if row["arm"] == arm
            ]
            end = min(float(curve[-1, 0]) for curve in curves)
            for at in np.linspace(0.0, min(end, most), 40):
                mean = np.mean([np.interp(at, curve[:, 0], curve[:, 1]) for curve in curves])
                values.append({"tokens": at / 1e6, "gain": round(float(mean), 4), "arm": arm})
        chart = (
            alt.Chart(alt.InlineData(values=values), title=pool, width=520, height=300)
            .mark_line(strokeWidth=1.6)
            .encode(
                x=alt.X("tokens:Q", title="generated tokens, millions"),
                y=alt.Y("gain:Q", title="gain in held-out pass@1"),
                color=alt.Color("arm:N", sort=None, scale=alt.Scale(scheme="tableau20")),
            )
        )
        name = "".join(c if c.isalnum() else "-" for c in pool)
        while "--" in name:
            name = name.replace("--", "-")
        path = folder / f"{stem}-{name.strip('-')}.svg"
        chart.save(str(path))
        written.append(path)
    return written
