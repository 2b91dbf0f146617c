"""The first stages: the base model's weights, and rows from the recipe's data."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from posttrain.pipeline.context import Counts, StageContext
from posttrain.records import Prompt, Sample
from posttrain.tables import file_sha256, write_json, write_records


def cache_dir() -> Path:
    """Where models that posttrain makes or fetches are kept: POSTTRAIN_CACHE, or below ~/.cache."""
    asked = os.environ.get("POSTTRAIN_CACHE")
    return Path(asked).expanduser() if asked else Path.home() / ".cache" / "posttrain"


def prepare_model(context: StageContext) -> Counts:
    """Find, fetch or make the base model; check the trainer blocks with TRL itself."""
    from posttrain.models import count_parameters, resolve_base
    from posttrain.training import check_trainer_blocks

    check_trainer_blocks(context.recipe)
    path = resolve_base(context.recipe.model, cache_dir=cache_dir())
    num_parameters = count_parameters(path)
    write_json(
        context.out_dir / "model.json",
        {
            "path": str(path),
            "revision": context.recipe.model.revision,
            "config_sha256": file_sha256(path / "config.json"),
            "num_parameters": num_parameters,
        },
    )
    return {"parameters": num_parameters}


def prepare_data(context: StageContext) -> Counts:
    """Read, tag, deduplicate and split the data; what is left out goes to quarantine.parquet."""
    from posttrain.data import assert_disjoint, load_data, write_quarantine
    from posttrain.recipe import find

    def beside_recipe(name: str) -> Path:
        return find(name, "data", folder=context.recipe_path.parent)

    # In the work folder, for a failed stage's out_dir is deleted.
    bundle = load_data(
        context.recipe,
        find=beside_recipe,
        seed=context.seed,
        quarantine_path=context.work_dir / "quarantine.parquet",
    )
    assert_disjoint(bundle)
    out = context.out_dir
    write_records(out / "samples.parquet", bundle.samples, Sample)
    write_records(out / "prompts.parquet", bundle.prompts, Prompt)
    for name, held_out in bundle.suites.items():
        write_records(out / "suites" / f"{name}.parquet", held_out, Prompt)
    write_quarantine(out / "quarantine.parquet", bundle.quarantine)
    counts = {
        "samples": len(bundle.samples),
        "prompts": len(bundle.prompts),
        "held_out": sum(len(held_out) for held_out in bundle.suites.values()),
        "quarantined": len(bundle.quarantine),
    }
    write_json(
        out / "summary.json",
        {
            **counts,
            "samples_by_capability": _by_capability(bundle.samples),
            "prompts_by_capability": _by_capability(bundle.prompts),
            "suites": {name: _by_capability(rows) for name, rows in bundle.suites.items()},
            "quarantined_by_reason": dict(Counter(str(r["reason"]) for r in bundle.quarantine)),
        },
    )
    return counts


def _by_capability(rows: list[Sample] | list[Prompt]) -> dict[str, int]:
    return dict(Counter(row.capability for row in rows))
