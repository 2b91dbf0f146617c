"""The report and the final policy with its model card."""

from __future__ import annotations

import shutil

from posttrain.pipeline.context import Counts, StageContext
from posttrain.pipeline.steps import reading


def report(context: StageContext) -> Counts:
    """Write report.html, and policy/: the last policy that was trained, with README.md."""
    from posttrain.report import write_model_card, write_report

    write_report(context.run_dir, context.out_dir / "report.html")
    for stage in reading.TRAINED:
        if stage in context.inputs:
            policy = context.out_dir / "policy"
            shutil.copytree(context.inputs[stage] / "policy", policy)
            write_model_card(context.run_dir, policy / "README.md")
            break
    return {}
