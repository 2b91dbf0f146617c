"""What became of the prompts, by step and capability, derived from the rollout tables."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.rl.accounting import FATES, PURPOSES, fate_of, purpose_of
from posttrain.rl.collect import USES
from posttrain.tables import read_table


def curriculum_flow(
    rollouts: Path, probes: Path | None = None, variants: Path | None = None
) -> list[dict[str, Any]]:
    """One row per step and capability.

    Groups proposed, by use and by reason; pass rate over decided rollouts; tokens generated, in all
    and as tokens_<purpose> and tokens_<fate>; beside these, tokens scored by the likelihood probe
    and generated for variants.
    """
    rows: list[dict[str, Any]] = []
    for table in sorted(rollouts.glob("step-*.parquet")):
        scored, written = _tokens_in(probes, table.name), _tokens_in(variants, table.name)
        by_capability: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for rollout in read_table(table):
            by_capability[rollout["capability"]].append(rollout)
        step = int(table.stem.split("-")[1])
        for capability in sorted({*by_capability, *scored, *written}):
            flow = _flow(by_capability[capability])
            beside = {"scored": scored[capability], "variants": written[capability]}
            rows.append({"step": step, "capability": capability, **flow, **beside})
    return rows


def flow_totals(flow: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Tokens over all rows: generated, by purpose, by fate, scored, and for variants."""
    names = ("tokens", *(f"tokens_{name}" for name in (*PURPOSES, *FATES)), "scored", "variants")
    rows = list(flow)
    return {name: sum(row[name] for row in rows) for name in names}


def _tokens_in(folder: Path | None, name: str) -> Counter[str]:
    """Per capability, what a step's table counts; nothing where there is no table."""
    tokens: Counter[str] = Counter()
    if folder is not None and (folder / name).exists():
        for row in read_table(folder / name):
            tokens[row["capability"]] += row["num_tokens"]
    return tokens


def _flow(rollouts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    heads = [r for r in rollouts if r["index"] == 0]
    decided = [r["passed"] for r in rollouts if r["passed"] is not None]
    tokens: Counter[str] = Counter()
    for rollout in rollouts:
        purpose = purpose_of(**{k: rollout[k] for k in ("reason", "refill", "num_pilot", "index")})
        for name in ("tokens", f"tokens_{purpose}", f"tokens_{fate_of(rollout['use'])}"):
            tokens[name] += len(rollout["completion_ids"])
    return {
        "proposed": len(heads),
        **{use: sum(r["use"] == use for r in heads) for use in USES},
        "reasons": dict(Counter(r["reason"] for r in heads)),
        "pass_rate": sum(decided) / len(decided) if decided else None,
        **{
            name: tokens[name]
            for name in ("tokens", *(f"tokens_{name}" for name in (*PURPOSES, *FATES)))
        },
    }
