"""What became of the prompts, by step and capability, derived from the rollout tables."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, get_args

from posttrain.rl.collect import Use
from posttrain.tables import read_table


def curriculum_flow(rollouts: Path) -> list[dict[str, Any]]:
    """One row per step and capability.

    Groups proposed and by use, pass rate over decided rollouts, tokens.
    """
    rows: list[dict[str, Any]] = []
    for table in sorted(rollouts.glob("step-*.parquet")):
        by_capability: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for rollout in read_table(table):
            by_capability[rollout["capability"]].append(rollout)
        rows += [_flow(capability, group) for capability, group in sorted(by_capability.items())]
    return rows


def _flow(capability: str, rollouts: list[dict[str, Any]]) -> dict[str, Any]:
    heads = [r for r in rollouts if r["index"] == 0]
    decided = [r["passed"] for r in rollouts if r["passed"] is not None]
    return {
        "step": rollouts[0]["step"],
        "capability": capability,
        "proposed": len(heads),
        **{use: sum(r["use"] == use for r in heads) for use in get_args(Use)},
        "pass_rate": sum(decided) / len(decided) if decided else None,
        "tokens": sum(len(r["completion_ids"]) for r in rollouts),
    }
