"""The report: one HTML file without script, made of what a run directory holds."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from markupsafe import Markup

import posttrain
from posttrain.report import headline, judging, lineage, quarantine, reading, training, verification
from posttrain.report.changes import measured_changes
from posttrain.report.layout import asset, environment
from posttrain.report.read import read_evaluated, read_prompts, read_run, read_samples
from posttrain.tables import write_bytes


def write_report(run_dir: Path, out: Path) -> Path:
    """Write the report of `run_dir` to `out`, a file or a folder for report.html.

    Stages and files that are missing are left out, with a line that says so.
    Errors: ValueError where `run_dir` is no run directory; SetupError where the report extra
    is missing.
    """
    path = out / "report.html" if out.is_dir() else out
    run = read_run(run_dir)
    prompts, samples = read_prompts(run), read_samples(run)
    evaluated = read_evaluated(run)
    lede = (
        headline.sentence(evaluated[0], measured_changes(evaluated[0], prompts))
        if evaluated
        else ""
    )
    css = asset("page.css")
    page = (
        environment(autoescape=True)
        .get_template("page.html.j2")
        .render(
            name=run.name,
            lede=lede,
            facts=lineage.facts(run),
            sections=[
                headline.section(run, evaluated, prompts),
                reading.section(run, evaluated, prompts),
                quarantine.section(run),
                judging.judge_section(run, samples),
                *training.sections(run),
                verification.section(run, prompts),
                lineage.timing_section(run),
                lineage.section(run),
            ],
            css=Markup(css),
            css_hash=Markup(
                "sha256-" + base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
            ),
            version=posttrain.__version__,
        )
    )
    write_bytes(path, page.encode())
    return path
