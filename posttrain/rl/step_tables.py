"""What a step leaves in the work folder: a table of each kind, written once and for good."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from posttrain.records import Prompt
from posttrain.rl.accounting import group_columns
from posttrain.rl.collect import Batch
from posttrain.rl.likelihood import LikelihoodProbe
from posttrain.rl.variants import Variant
from posttrain.tables import read_records, write_groups, write_records, write_table

TABLES = ("rollouts", "probes", "prompts", "variants")
"""Folders of one table per step: what was generated, what was scored, which prompts were added, and
which the policy tried to write."""


def write_step(
    work_dir: Path,
    step: int,
    batch: Batch,
    likelihoods: LikelihoodProbe,
    prompts: Mapping[str, Prompt],
) -> None:
    """Write a step's rollouts, with what became of each group and why, and what was scored."""
    if likelihoods.scored:
        rows = [{"step": step, **dataclasses.asdict(one)} for one in likelihoods.scored]
        write_table(work_dir / "probes" / _name(step), rows)
    write_groups(
        work_dir / "rollouts" / _name(step), batch.groups, prompts, columns=group_columns(batch)
    )


def write_made(
    work_dir: Path, step: int, prompts: Sequence[Prompt], variants: Sequence[Variant]
) -> None:
    """Write the prompts that a step put into the pool, and every variant that was tried."""
    if prompts:
        write_records(work_dir / "prompts" / _name(step), prompts, Prompt)
    if variants:
        write_records(work_dir / "variants" / _name(step), variants, Variant)


def read_added(work_dir: Path) -> Iterator[list[Prompt]]:
    """The prompts that were put into the pool, step by step."""
    for table in sorted((work_dir / "prompts").glob("step-*.parquet")):
        yield read_records(table, Prompt)


def set_aside(work_dir: Path, step: int) -> None:
    """Move the tables of `step` and later ones out of the way: they will be made again."""
    aside = work_dir / "superseded" / str(time.time_ns())
    for name in TABLES:
        for table in sorted((work_dir / name).glob("step-*.parquet")):
            if int(table.stem.split("-")[1]) >= step:
                (aside / name).mkdir(parents=True, exist_ok=True)
                table.rename(aside / name / table.name)


def _name(step: int) -> str:
    return f"step-{step:06d}.parquet"
