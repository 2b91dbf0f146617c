"""prune: drop the easiest samples, and say whether the judge could tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.pipeline.context import Counts, Stage, StageContext
from posttrain.pipeline.stages import data, judge
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.schema import Prune, Recipe
from posttrain.records import Sample, Verdict
from posttrain.tables import read_groups, read_records, write_json, write_records


def run(context: StageContext, section: Prune) -> Counts:
    """Split the samples into kept, dropped and unscored, and say how good the judge is."""
    from posttrain.judge import judge_summary
    from posttrain.progress import note
    from posttrain.prune import Row, prune

    samples = data.samples(context)
    folder = context.inputs["judge"]
    verdicts = read_records(folder / "verdicts.parquet", Verdict)
    result = prune(samples, verdicts, section)
    for name in ("kept", "dropped", "unscored"):
        write_records(context.out_dir / f"{name}.parquet", getattr(result, name), Row)
    summary = judge_summary(samples, verdicts, read_groups(folder / "pilot.parquet"), result)
    write_json(context.out_dir / "summary.json", summary)
    for value in summary.values():
        if isinstance(value, str) and " " in value:
            note(value)
    return {
        "kept": len(result.kept),
        "dropped": len(result.dropped),
        "unscored": len(result.unscored),
    }


def depends_on(loaded: LoadedRecipe, _section: Prune) -> Mapping[str, Any]:
    """The rule."""
    return {"sft": {"prune": loaded.written["sft"]["prune"]}}


def section_of(recipe: Recipe) -> Prune | None:
    """Return the rule where there are verdicts to prune by."""
    judged = judge.section_of(recipe)
    return None if judged is None else judged.prune


def kept_samples(context: StageContext) -> list[Sample]:
    """Return the samples to train on, unscored ones included; without a judge all of them."""
    from posttrain.prune import Row

    samples = data.samples(context)
    if "prune" not in context.inputs:
        return samples
    folder = context.inputs["prune"]
    rows = [
        *read_records(folder / "kept.parquet", Row),
        *read_records(folder / "unscored.parquet", Row),
    ]
    kept = {row.sample_id for row in rows}
    return [sample for sample in samples if sample.sample_id in kept]


STAGE = Stage(
    name="prune",
    version=1,
    section=section_of,
    run=run,
    reads=("data", "judge"),
    depends_on=depends_on,
    is_seeded=False,
)
