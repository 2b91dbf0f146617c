"""What the evaluations of one suite found, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.report.read import MACRO


def result_rows(
    suite: str, summaries: Mapping[str, Mapping[str, Any]], manifests: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """A row per stage and capability; the last of a stage is the average, with tokens and seconds.

    Tokens and seconds are those of the training stage, for `base` those of the evaluation.
    """
    for point, summary in summaries.items():
        measured = summary["suites"].get(suite)
        if measured is None:
            continue
        for name, entry in measured["capabilities"].items():
            yield {"stage": point, "capability": name, **entry, "tokens": None, "seconds": None}
        manifest = manifests.get(f"eval-{point}" if point == "base" else point, {})
        counts = manifest.get("counts", {})
        yield {
            "stage": point,
            "capability": MACRO,
            "pass@1": measured["macro"],
            "pass@k": _mean_at_k(measured["capabilities"]),
            "constant": _mean([e["constant"] for e in measured["capabilities"].values()]),
            "num_prompts": sum(e["num_prompts"] for e in measured["capabilities"].values()),
            "tokens": counts.get("generated_tokens", counts.get("tokens")),
            "seconds": manifest.get("seconds"),
        }


def _mean_at_k(capabilities: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    ks = dict.fromkeys(k for entry in capabilities.values() for k in entry["pass@k"])
    return {k: _mean([e["pass@k"].get(k) for e in capabilities.values()]) for k in ks}


def _mean(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if values and len(present) == len(values) else None
