"""Vega-Lite specifications as small inline SVG in the page's colours, without script."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from posttrain.errors import SetupError
from posttrain.recipe.schema import training_stages
from posttrain.report.inert import plain

COLOURS: Mapping[str, str] = {
    "ink": "#22262b",
    "muted": "#6a7078",
    "rule": "#e3e1da",
    "accent": "#2f5fb3",
    "base": "#868b92",
    "training-1": "#2f6fb8",
    "training-2": "#d9622b",
    "training-3": "#2a8f68",
    "training-4": "#7d5bb5",
    "solved": "#a9c8b4",
    "failed": "#d9a5a0",
    "undecided": "#b9a3cf",
    "filler": "#e8c58f",
    "surplus": "#f3b79a",
    "dropped": "#c3c6ca",
}
"""Colours of charts in the light theme, by the name of the page's CSS variable."""

NUM_TRAINING_COLOURS = sum(name.startswith("training-") for name in COLOURS)

FONT_SIZE = 11
_VARIABLES = {colour: f"var(--{name})" for name, colour in COLOURS.items()}
_ELEMENTS = frozenset({"svg", "g", "path", "line", "rect", "text", "tspan", "circle"})
_ATTRIBUTES = frozenset(
    {
        *("d", "transform", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "dx", "dy"),
        *("width", "height", "viewBox", "display", "opacity"),
        *("fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-dasharray"),
        *("stroke-linecap", "stroke-linejoin", "text-anchor", "font-size", "font-weight"),
    }
)
_EMPTY_PATHS = frozenset({"", "M0,0h0v0h0Z"})
_LONG_NUMBER = re.compile(r"-?\d+\.\d{2,}")

CONFIG: Mapping[str, Any] = {
    "background": None,
    "font": "sans-serif",
    # The size of a panel is its outer size, so that letters are equally large in all of them.
    "autosize": {"type": "fit", "contains": "padding"},
    "padding": 2,
    "view": {"stroke": None},
    "axis": {
        "labelColor": COLOURS["muted"],
        "titleColor": COLOURS["muted"],
        "labelFontSize": FONT_SIZE,
        "titleFontSize": FONT_SIZE,
        "titleFontWeight": "normal",
        "domainColor": COLOURS["rule"],
        "tickColor": COLOURS["rule"],
        "gridColor": COLOURS["rule"],
        "tickSize": 4,
        "labelPadding": 4,
        "titlePadding": 8,
    },
    "axisX": {"grid": False, "labelFlush": False},
    "axisY": {"domain": False, "ticks": False},
    "text": {"color": COLOURS["ink"], "fontSize": FONT_SIZE},
}


def stage_colour(stage: str) -> str:
    """Return the name of a stage's colour: each training stage has one, all others share one."""
    order = training_stages()
    if stage not in order:
        return "base"
    return f"training-{order.index(stage) % NUM_TRAINING_COLOURS + 1}"


def render(spec: Mapping[str, Any], *, label: str) -> Markup:
    """Draw `spec`; `label` is for screen readers, `description` channels become tooltips."""
    try:
        import vl_convert
    except ImportError as error:
        raise SetupError(
            "the report draws its charts with vl-convert-python, which is not installed",
            hint="pip install 'posttrain[report]'",
        ) from error
    drawn = vl_convert.vegalite_to_svg(encodable({**spec, "config": CONFIG}))
    return clean(drawn, label=label)


def encodable(value: Any) -> Any:
    """Make every string in `value` plain, because names of capabilities come from data."""
    if isinstance(value, Mapping):
        return {plain(str(key)): encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encodable(item) for item in value]
    return plain(value) if isinstance(value, str) else value


def clean(drawn: str, *, label: str) -> Markup:
    """Keep known elements and attributes; replace colours by variables, descriptions by titles."""
    root = _copy(ElementTree.fromstring(drawn))
    assert root is not None
    root.set("role", "img")
    root.set("aria-label", plain(label))
    root.set("class", "chart")
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _copy(source: ElementTree.Element) -> ElementTree.Element | None:
    tag = source.tag.rpartition("}")[2]
    if tag not in _ELEMENTS or (tag == "path" and source.get("d", "") in _EMPTY_PATHS):
        return None
    kept = ElementTree.Element(tag)
    for name, value in source.attrib.items():
        if name in _ATTRIBUTES:
            kept.set(
                name, _VARIABLES.get(value, _LONG_NUMBER.sub(lambda m: f"{float(m[0]):.1f}", value))
            )
    if tag == "text":
        kept.text = source.text
    if (
        source.get("role") == "graphics-symbol"
        and (source.get("aria-roledescription") or "axis") != "axis"
    ):
        title = ElementTree.SubElement(kept, "title")
        title.text = source.get("aria-label", "")
    children = [copied for child in source if (copied := _copy(child)) is not None]
    if tag == "g" and not children:
        return None
    kept.extend(children)
    return kept
