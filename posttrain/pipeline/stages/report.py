"""report: report.html, and the final policy with its model card."""

from __future__ import annotations

import shutil
from typing import Any

from posttrain.artefacts import POLICY
from posttrain.pipeline.stage import Counts, Stage, StageContext, last_policy
from posttrain.recipe.schema import Recipe
from posttrain.run_directory import REPORT


def run(context: StageContext, _section: Recipe) -> Counts:
    """Write report.html, and policy/: the last policy that was trained, with README.md."""
    from posttrain.report import write_model_card, write_report

    write_report(context.run_dir, context.out_dir / REPORT)
    trained = last_policy(context)
    if trained is not None:
        policy = context.out_dir / POLICY
        shutil.copytree(trained, policy)
        write_model_card(context.run_dir, policy / "README.md")
    return {}


def report_on(*stages: Stage[Any]) -> Stage[Recipe]:
    """Return the row of a report on these stages."""
    return Stage(
        name="report",
        version=1,
        section=lambda recipe: recipe,
        run=run,
        reads=tuple(stage.name for stage in stages),
        is_seeded=False,
    )
