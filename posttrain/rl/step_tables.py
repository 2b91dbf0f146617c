"""Tables of an RL run: what each step generated, why, and what became of every token."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from posttrain.curriculum import Reason
from posttrain.records import Prompt
from posttrain.rl.collect import USES, Batch, Use
from posttrain.rl.likelihood import ScoredReferences
from posttrain.rl.variants import Variant
from posttrain.tables import read_records, read_table, write_groups, write_records, write_table

TABLES = ("rollouts", "probes", "prompts", "variants")
"""Folders of one table per step: what was generated, which references were scored, which prompts
were added, and which the policy tried to write."""

Purpose = Literal["whole", "pilot", "continuation", "refill", "exploration", "review", "retry"]
"""Purpose of rollouts: a group chosen by its score and drawn at once, or its pilot, or the rest
after the pilot; to replace a group without signal; a random untried prompt; to check that a prompt
is still solved, or still unsolved."""

Fate = Literal["trained", "filler", "discarded"]
"""Fate of rollouts: trained on with signal, trained on without, or neither."""

PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
FATES: tuple[Fate, ...] = get_args(Fate)

_BY_REASON: Mapping[Reason, Purpose] = {
    "explored": "exploration",
    "reviewed": "review",
    "retried": "retry",
}


# A step's tables


def write_step(
    work_dir: Path,
    step: int,
    batch: Batch,
    references: ScoredReferences,
    prompts: Mapping[str, Prompt],
) -> None:
    """Write a step's rollouts, with each group's use and reason, and its scored references."""
    if references.scored:
        rows = [{"step": step, **dataclasses.asdict(one)} for one in references.scored]
        write_table(work_dir / "probes" / _name(step), rows)
    write_groups(
        work_dir / "rollouts" / _name(step), batch.groups, prompts, columns=group_columns(batch)
    )


def write_new_prompts(
    work_dir: Path, step: int, prompts: Sequence[Prompt], variants: Sequence[Variant]
) -> None:
    """Write the prompts that a step added to the pool, and every variant that was tried."""
    if prompts:
        write_records(work_dir / "prompts" / _name(step), prompts, Prompt)
    if variants:
        write_records(work_dir / "variants" / _name(step), variants, Variant)


def read_new_prompts(work_dir: Path) -> Iterator[list[Prompt]]:
    """Read the prompts that were added to the pool, step by step."""
    for table in sorted((work_dir / "prompts").glob("step-*.parquet")):
        yield read_records(table, Prompt)


def archive_from(work_dir: Path, step: int) -> None:
    """Move the tables of `step` and later ones to superseded/: they will be made again."""
    archive = work_dir / "superseded" / str(time.time_ns())
    for name in TABLES:
        for table in sorted((work_dir / name).glob("step-*.parquet")):
            if _step(table) >= step:
                (archive / name).mkdir(parents=True, exist_ok=True)
                table.rename(archive / name / table.name)


def group_columns(batch: Batch) -> list[dict[str, Any]]:
    """Return, per group, the rollout table's columns on how it was chosen and used."""
    return [
        {
            "use": use,
            "refill": refill,
            "reason": proposal.reason,
            "num_pilot": _num_pilot(proposal.num_pilot, batch.num_generations),
            # Without what did not matter, such as the score of an explored prompt.
            "decision": {k: v for k, v in proposal.decision.items() if math.isfinite(v)},
        }
        for proposal, use, refill in zip(
            batch.proposals, batch.uses, batch.refill_rounds, strict=True
        )
    ]


def _num_pilot(asked: int | None, num_generations: int) -> int | None:
    """Return the size of a pilot; None if the group was drawn at once."""
    return None if asked is None or asked >= num_generations else asked


def _name(step: int) -> str:
    return f"step-{step:06d}.parquet"


def _step(table: Path) -> int:
    return int(table.stem.split("-")[1])


# Tokens: every generated one has one purpose and one fate


def tokens_spent(batch: Batch) -> dict[str, int]:
    """Return generated tokens in all, by purpose and by fate; both of these sum to the whole."""
    spent: Counter[str] = Counter(dict.fromkeys(("generated", *PURPOSES, *FATES), 0))
    for group, columns in zip(batch.groups, group_columns(batch), strict=True):
        for index, rollout in enumerate(group.rollouts):
            num_tokens = len(rollout.completion_ids)
            spent["generated"] += num_tokens
            spent[fate_of(columns["use"])] += num_tokens
            spent[_purpose(columns, index)] += num_tokens
    return dict(spent)


def purpose_of(*, reason: Reason, refill: int, num_pilot: int | None, index: int) -> Purpose:
    """Return the purpose of a group's rollout `index`: by reason, then round, then pilot.

    >>> purpose_of(reason="selected", refill=0, num_pilot=4, index=4)
    'continuation'
    >>> purpose_of(reason="selected", refill=1, num_pilot=4, index=4)
    'refill'
    """
    if reason in _BY_REASON:
        return _BY_REASON[reason]
    if refill:
        return "refill"
    if num_pilot is None:
        return "whole"
    return "pilot" if index < num_pilot else "continuation"


def _purpose(columns: Mapping[str, Any], index: int) -> Purpose:
    names = ("reason", "refill", "num_pilot")
    return purpose_of(index=index, **{name: columns[name] for name in names})


def fate_of(use: Use) -> Fate:
    """Return the fate of a group's tokens.

    >>> fate_of("filler"), fate_of("stopped")
    ('filler', 'discarded')
    """
    return use if use in ("trained", "filler") else "discarded"


# The flow of prompts: all steps, by capability


def curriculum_flow(folder: Path) -> list[dict[str, Any]]:
    """Return one row per step and capability from an RL run's tables.

    Groups proposed, by use and by reason; pass rate over decided rollouts; tokens generated, in all
    and as tokens_<purpose> and tokens_<fate>; beside these, tokens scored for likelihoods and
    generated for variants.
    """
    rows: list[dict[str, Any]] = []
    for table in sorted((folder / "rollouts").glob("step-*.parquet")):
        scored = _tokens_in(folder / "probes" / table.name)
        written = _tokens_in(folder / "variants" / table.name)
        by_capability: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for rollout in read_table(table):
            by_capability[rollout["capability"]].append(rollout)
        for capability in sorted({*by_capability, *scored, *written}):
            flow = _flow(by_capability[capability])
            beside = {"scored": scored[capability], "variants": written[capability]}
            rows.append({"step": _step(table), "capability": capability, **flow, **beside})
    return rows


def flow_totals(flow: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return tokens over all rows: generated, by purpose, by fate, scored, and for variants."""
    names = ("tokens", *(f"tokens_{name}" for name in (*PURPOSES, *FATES)), "scored", "variants")
    rows = list(flow)
    return {name: sum(row[name] for row in rows) for name in names}


def _tokens_in(table: Path) -> Counter[str]:
    """Return a step's tokens per capability; nothing without the table."""
    tokens: Counter[str] = Counter()
    for row in read_table(table) if table.exists() else ():
        tokens[row["capability"]] += row["num_tokens"]
    return tokens


def _flow(rollouts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    heads = [r for r in rollouts if r["index"] == 0]
    decided = [r["passed"] for r in rollouts if r["passed"] is not None]
    tokens: Counter[str] = Counter()
    for rollout in rollouts:
        purpose = _purpose(rollout, rollout["index"])
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
