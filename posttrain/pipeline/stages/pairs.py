"""pairs: preference pairs from the RL rollouts, one pass and one fail of the same prompt."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from posttrain.errors import HealthStop
from posttrain.pipeline.context import Counts, Stage, StageContext
from posttrain.pipeline.stages import data, rl
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.schema import Pairs
from posttrain.records import PreferencePair
from posttrain.tables import read_records, write_json, write_records


def run(context: StageContext, section: Pairs) -> Counts:
    """Mine the pairs; raise HealthStop where there is none."""
    from posttrain.preferences import mine_pairs

    started = time.monotonic()
    prompts = {p.prompt_id: p for p in (*data.prompts(context), *rl.added_prompts(context))}
    groups = rl.rollout_groups(context)
    pairs = mine_pairs(groups, prompts, section, seed=context.seed)
    if not pairs:
        raise HealthStop(
            f"no preference pair in {len(groups)} groups of RL rollouts: none has a passing and a "
            "failing answer of the asked-for kinds",
            hint="widen dpo.pairs (corner_cases, max_length_ratio), train RL longer, or drop dpo",
        )
    write_records(context.out_dir / "pairs.parquet", pairs, PreferencePair)
    corner_cases: dict[str, int] = {}
    for pair in pairs:
        corner_cases[pair.corner_case] = corner_cases.get(pair.corner_case, 0) + 1
    write_json(
        context.out_dir / "summary.json",
        {
            "pairs": len(pairs),
            "groups": len(groups),
            "corner_cases": corner_cases,
            "seconds": time.monotonic() - started,
        },
    )
    return {"pairs": len(pairs), "groups": len(groups)}


def depends_on(loaded: LoadedRecipe, _section: Pairs) -> Mapping[str, Any]:
    """Which pairs are asked for."""
    return {"dpo": {"pairs": loaded.written["dpo"]["pairs"]}}


def pairs(context: StageContext) -> list[PreferencePair]:
    """Return the pairs, newest first."""
    return read_records(context.inputs["pairs"] / "pairs.parquet", PreferencePair)


STAGE = Stage(
    name="pairs",
    version=1,
    section=lambda recipe: recipe.dpo and recipe.dpo.pairs,
    run=run,
    reads=("data", "rl"),
    depends_on=depends_on,
)
