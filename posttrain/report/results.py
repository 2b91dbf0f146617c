"""Results of one suite as rows, for all tables of results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posttrain.artefacts import BASE, EVALUATION, SuiteResult
from posttrain.metrics import Interval
from posttrain.run_directory import FinishedStage

MACRO = "macro average"
TextTable = tuple[list[str], list[list[str]]]
"""Column names, and rows of cells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultRow:
    """Result of one stage's policy on one capability, or on average; NaN where unknown."""

    point: str
    """`base`, or a training stage."""
    capability: str
    """Name of the capability; MACRO for the average, which is the last row of a point."""
    pass_at_1: Interval
    pass_at_k: Mapping[int, float]
    constant: float
    """pass@1 of the best constant answer."""
    num_prompts: int
    tokens: int | None = None
    """Tokens of the training stage, or of the evaluation for `base`; in the average's row only."""
    seconds: float | None = None
    """Seconds, likewise."""


def result_rows(
    results: Mapping[str, SuiteResult], stages: Mapping[str, FinishedStage]
) -> list[ResultRow]:
    """Return a row per point and capability, and one for the average after those of each point."""
    rows: list[ResultRow] = []
    for point, result in results.items():
        rows += [
            ResultRow(
                point=point,
                capability=name,
                pass_at_1=found.pass_at_1,
                pass_at_k=found.pass_at_k,
                constant=found.constant,
                num_prompts=found.num_prompts,
            )
            for name, found in result.capabilities.items()
        ]
        stage = stages.get(f"{EVALUATION}{BASE}" if point == BASE else point)
        counts = {} if stage is None else stage.manifest.counts
        tokens = counts.get("generated_tokens", counts.get("tokens"))
        rows.append(
            ResultRow(
                point=point,
                capability=MACRO,
                pass_at_1=result.macro,
                pass_at_k=result.macro_pass_at_k,
                constant=result.macro_constant,
                num_prompts=result.num_prompts,
                tokens=None if tokens is None else int(tokens),
                seconds=None if stage is None else stage.manifest.seconds,
            )
        )
    return rows


def result_table(rows: Sequence[ResultRow]) -> TextTable:
    """Format results for a terminal or a Markdown page."""
    ks = sorted({k for row in rows for k in row.pass_at_k})
    columns = ["stage", "capability", "pass@1 [95 %]", *(f"pass@{k}" for k in ks)]
    cells = [
        [
            row.point,
            row.capability,
            f"{_share(row.pass_at_1.mean)} "
            f"[{_share(row.pass_at_1.low)}, {_share(row.pass_at_1.high)}]",
            *(_share(row.pass_at_k.get(k, math.nan)) for k in ks),
            _share(row.constant),
            "" if row.tokens is None else f"{row.tokens:,}",
            "" if row.seconds is None else f"{row.seconds:.1f}",
        ]
        for row in rows
    ]
    return [*columns, "best constant", "tokens", "seconds"], cells


def stage_table(stages: Mapping[str, FinishedStage]) -> TextTable:
    """Format time, peak memory and counts by stage, with their total in the last row."""
    manifests = [stage.manifest for stage in stages.values()]
    total = sum(manifest.seconds for manifest in manifests)
    peak = max((m.peak_rss_bytes for m in manifests if m.peak_rss_bytes), default=None)

    def row(name: str, seconds: float, peak: int | None, counts: Mapping[str, float]) -> list[str]:
        return [
            name,
            f"{seconds:.1f}",
            f"{seconds / total:.0%}" if total else "-",
            f"{peak / 2**30:.2f}" if peak else "-",
            ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in counts.items()),
        ]

    cells = [row(m.stage, m.seconds, m.peak_rss_bytes, m.counts) for m in manifests]
    columns = ["stage", "seconds", "share", "peak memory GiB", "counts"]
    return columns, [*cells, row("all", total, peak, {})]


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
