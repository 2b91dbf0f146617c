"""The report: one HTML file without script, made from what a run directory holds."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from markupsafe import Markup

import posttrain
from posttrain.errors import EnvironmentFault
from posttrain.report import headline, judging, lineage, reading, training
from posttrain.report.inert import finalize, inert, plain
from posttrain.report.read import read_evaluated, read_prompts, read_run, read_samples
from posttrain.tables import write_bytes


def write_report(run_dir: Path, out: Path) -> Path:
    """Write the report of `run_dir` to `out` (a file, or a folder that gets report.html); returns the file.

    Stages and files that are missing are left out, with a line that says so.
    Errors: ValueError where `run_dir` is no run directory; EnvironmentFault where the report extra is missing.
    """
    path = out / "report.html" if out.is_dir() else out
    run = read_run(run_dir)
    prompts, samples = read_prompts(run), read_samples(run)
    evaluated = read_evaluated(run)
    lede = headline.sentence(evaluated[0], headline.measured_changes(evaluated[0], prompts)) if evaluated else ""
    css = _asset("page.css")
    page = _environment().get_template("page.html.j2").render(
        name=run.name,
        lede=lede,
        facts=lineage.facts(run),
        sections=[
            headline.section(run, evaluated, prompts),
            reading.section(run, evaluated, prompts),
            judging.data_section(run),
            judging.judge_section(run, samples),
            training.sft_section(run),
            training.rl_section(run),
            training.dpo_section(run),
            lineage.timing_section(run),
            lineage.section(run),
        ],
        css=Markup(css),
        css_hash=Markup("sha256-" + base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()),
        version=posttrain.__version__,
    )
    write_bytes(path, page.encode())
    return path


def render_text(template: str, **values: Any) -> str:
    """A Markdown template, its strings encodable; the template escapes what Markdown would read as markup."""
    environment = _environment()
    environment.autoescape = False
    return environment.get_template(template).render(**values)


def _environment() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise EnvironmentFault(
            "the report is laid out with jinja2, which is not installed", hint="pip install 'posttrain[report]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inert"] = inert
    environment.filters["plain"] = plain
    return environment


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
