"""The results of one suite as rows: what the end of a run, `bench results` and the card show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.artefacts import BASE, EVALUATION, EvaluationResult
from posttrain.metrics import Interval
from posttrain.report.read import MACRO
from posttrain.run_directory import FinishedStage


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultRow:
    """How the policy of one stage did on one capability, or on average; NaN where unknown."""

    point: str
    """`base`, or a training stage."""
    capability: str
    """MACRO for the average, the last row of a point."""
    pass_at_1: Interval
    pass_at_k: Mapping[int, float]
    constant: float
    """pass@1 of the best constant answer."""
    tokens: int | None = None
    """Of the training stage, for `base` of the evaluation; only in the average's row."""
    seconds: float | None = None
    """Likewise."""


def result_rows(
    suite: str, results: Mapping[str, EvaluationResult], stages: Mapping[str, FinishedStage]
) -> list[ResultRow]:
    """Return a row per point and capability, and one for the average after those of each point."""
    rows: list[ResultRow] = []
    for point, result in results.items():
        measured = result.suites.get(suite)
        if measured is None:
            continue
        rows += [
            ResultRow(
                point=point,
                capability=name,
                pass_at_1=found.pass_at_1,
                pass_at_k=found.pass_at_k,
                constant=found.constant,
            )
            for name, found in measured.capabilities.items()
        ]
        stage = stages.get(f"{EVALUATION}{BASE}" if point == BASE else point)
        counts = {} if stage is None else stage.manifest.counts
        tokens = counts.get("generated_tokens", counts.get("tokens"))
        rows.append(
            ResultRow(
                point=point,
                capability=MACRO,
                pass_at_1=measured.macro,
                pass_at_k=measured.macro_pass_at_k,
                constant=measured.macro_constant,
                tokens=None if tokens is None else int(tokens),
                seconds=None if stage is None else stage.manifest.seconds,
            )
        )
    return rows
