"""The package's templates, and the Jinja environment that fills them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.errors import SetupError
from posttrain.report.inert import finalize, inert, plain


def environment(*, autoescape: bool) -> Any:
    """Return a Jinja environment whose output is encodable and where a missing name is an error."""
    try:
        import jinja2
    except ImportError as error:
        raise SetupError(
            "the report is laid out with jinja2, which is not installed",
            hint="pip install 'posttrain[report]'",
        ) from error
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=autoescape,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["inert"] = inert
    made.filters["plain"] = plain
    return made


def asset(name: str) -> str:
    """Return the text of a file that ships in this package."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
