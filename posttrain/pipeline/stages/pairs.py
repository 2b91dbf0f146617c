"""pairs: preference pairs from the RL rollouts, one pass and one fail of the same prompt."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.artefacts import PAIRS, read_added_prompts, read_rollouts
from posttrain.errors import HealthStop
from posttrain.pipeline.stage import Counts, Stage, StageContext
from posttrain.pipeline.stages import data
from posttrain.pipeline.verifying import verifiers_ready
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.schema import Pairs
from posttrain.run_directory import SUMMARY
from posttrain.tables import write_json


def run(context: StageContext, section: Pairs) -> Counts:
    """Mine the pairs; raise HealthStop where there is none."""
    from posttrain.preferences import mine_pairs, pair_summary

    started = time.monotonic()
    rl = context.inputs["rl"]
    prompts = {p.prompt_id: p for p in (*data.prompts(context), *read_added_prompts(rl))}
    groups = list(read_rollouts(rl))
    with verifiers_ready(context, []):
        pairs = mine_pairs(groups, prompts, section, seed=context.seed)
    if not pairs:
        raise HealthStop(
            f"no preference pair in {len(groups)} groups of RL rollouts: none has a passing and a "
            "failing answer of the asked-for kinds",
            hint="widen dpo.pairs (corner_cases, max_length_ratio), train RL longer, or drop dpo",
        )
    PAIRS.write(context.out_dir, pairs)
    write_json(
        context.out_dir / SUMMARY,
        {
            "pairs": len(pairs),
            "groups": len(groups),
            "corner_cases": pair_summary(pairs),
            "seconds": time.monotonic() - started,
        },
    )
    return {"pairs": len(pairs), "groups": len(groups)}


def depends_on(loaded: LoadedRecipe, _section: Pairs) -> Mapping[str, Any]:
    """Return the limits on pairs."""
    return {"dpo": {"pairs": loaded.written["dpo"]["pairs"]}}


def files(loaded: LoadedRecipe) -> Mapping[str, Path]:
    """Return the sources of the user's own detectors, by recipe key."""
    found = loaded.files.items()
    return {key: path for key, path in found if key.startswith("dpo.pairs.corner_cases.")}


STAGE = Stage(
    name="pairs",
    version=1,
    section=lambda recipe: recipe.dpo and recipe.dpo.pairs,
    run=run,
    reads=("data", "rl"),
    depends_on=depends_on,
    files=files,
)
