"""prune: drop the easiest samples, if the judge can tell which they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.artefacts import DROPPED, KEPT, PILOT, UNSCORED, VERDICTS
from posttrain.pipeline.stage import Counts, Stage, StageContext
from posttrain.pipeline.stages import data, judge
from posttrain.progress import note
from posttrain.prune import prune
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.schema import Prune, Recipe
from posttrain.records import Sample
from posttrain.run_directory import SUMMARY
from posttrain.tables import read_groups, write_json

KEEP_ALL = Prune(drop_easiest=0.0)
REFUSAL = (
    "No sample is dropped on the word of a judge that did not pass its check. "
    "To drop samples all the same: --set sft.prune.require_check=false"
)


def run(context: StageContext, section: Prune) -> Counts:
    """Check the judge; split the samples into kept, dropped and unscored.

    Drops nothing where the judge does not pass and the section asks for that.
    """
    from posttrain.judge import check_judge, judge_summary

    samples = data.samples(context)
    verdicts = VERDICTS.read(context.inputs["judge"])
    check = check_judge(samples, verdicts, read_groups(context.inputs["judge"] / PILOT))
    refused = section.require_check and section.drop_easiest > 0 and not check.earned
    result = prune(samples, verdicts, KEEP_ALL if refused else section)
    KEPT.write(context.out_dir, result.kept)
    DROPPED.write(context.out_dir, result.dropped)
    UNSCORED.write(context.out_dir, result.unscored)
    summary = judge_summary(samples, verdicts, check, result)
    if refused:
        summary["refusal"] = REFUSAL
    write_json(context.out_dir / SUMMARY, summary)
    note(check.verdict)
    if refused:
        note(REFUSAL)
    return {
        "kept": len(result.kept),
        "dropped": len(result.dropped),
        "unscored": len(result.unscored),
    }


def depends_on(loaded: LoadedRecipe, _section: Prune) -> Mapping[str, Any]:
    """Return the rule of pruning."""
    return {"sft": {"prune": loaded.written["sft"]["prune"]}}


def section_of(recipe: Recipe) -> Prune | None:
    """Return the rule where there are verdicts to prune by."""
    judged = judge.section_of(recipe)
    return None if judged is None else judged.prune


def kept_samples(context: StageContext) -> list[Sample]:
    """Return the samples to train on, unscored ones included; without a judge all of them."""
    samples = data.samples(context)
    if "prune" not in context.inputs:
        return samples
    folder = context.inputs["prune"]
    kept = {decision.sample_id for decision in (*KEPT.read(folder), *UNSCORED.read(folder))}
    return [sample for sample in samples if sample.sample_id in kept]


STAGE = Stage(
    name="prune",
    version=2,
    section=section_of,
    run=run,
    reads=("data", "judge"),
    depends_on=depends_on,
    is_seeded=False,
)
