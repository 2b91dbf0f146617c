"""The page's charts as SVG; every mark carries its value as a tooltip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from posttrain.errors import SetupError
from posttrain.report.blocks import Panel, number, percent
from posttrain.report.svg import COLOURS, render, stage_colour

if TYPE_CHECKING:
    import altair as alt
else:
    try:
        import altair as alt
    except ImportError as error:
        raise SetupError(
            "the report draws its charts with altair, which is not installed",
            hint="pip install 'posttrain[report]'",
        ) from error

Points = Sequence[tuple[float, float]]
PANEL = (290, 186)
MAX_POINTS = 160
MAX_DOTS = 600
NUM_BINS = 25
"""Bars of a histogram."""


def thin(points: Points, limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Average neighbouring points so that at most `limit` remain."""
    if len(points) <= limit:
        return list(points)
    thinned: list[tuple[float, float]] = []
    for i in range(limit):
        part = points[i * len(points) // limit : (i + 1) * len(points) // limit]
        thinned.append((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)))
    return thinned


def stage_dots(
    rows: Sequence[Mapping[str, Any]], constant: float | None, *, top: float, label: str
) -> Markup:
    """Draw pass@1 with its interval after each stage; `constant` is a dashed line."""
    order = [str(row["point"]) for row in rows]
    values = [
        {
            **row,
            "tip": f"{row['point']}: {percent(row['mean'])} [{percent(row['low'])}, "
            f"{percent(row['high'])}]",
        }
        for row in rows
    ]
    colour = _colour("point:N", {point: stage_colour(point) for point in order})
    x = alt.X(
        "point:N", sort=order, title=None, axis=alt.Axis(labelAngle=0, ticks=False, domain=True)
    )
    y_scale = alt.Scale(domain=[0, top], nice=False)
    y = alt.Y("mean:Q", scale=y_scale, title=None, axis=alt.Axis(format=".0%", tickCount=4))
    base = _chart(values)
    layers: list[Any] = [
        base.mark_line(color=COLOURS["rule"], strokeWidth=1.5, aria=False).encode(x=x, y=y),
        base.mark_rule(strokeWidth=5, opacity=0.28, strokeCap="round", aria=False).encode(
            x=x, y=alt.Y("low:Q", scale=y_scale), y2="high:Q", color=colour
        ),
        base.mark_circle(size=70, opacity=1).encode(x=x, y=y, color=colour, description="tip:N"),
    ]
    if constant is not None:
        flat = _chart([{"at": constant, "tip": f"best constant answer: {percent(constant)}"}])
        layers.append(
            flat.mark_rule(color=COLOURS["muted"], strokeDash=[3, 3], strokeWidth=1).encode(
                y=alt.Y("at:Q", scale=y_scale), description="tip:N"
            )
        )
    return _svg(alt.layer(*layers), PANEL, label)


def curves(
    lines: Mapping[str, tuple[str, Points]],
    *,
    label: str,
    share: bool = False,
    top: float | None = None,
    zero: bool = False,
    limit_line: float | None = None,
) -> Markup:
    """Draw lines over steps; `lines` maps names to (colour name, points)."""
    show = percent if share else number
    values = [
        {"x": x, "y": y, "name": name, "tip": f"{name}, step {number(x)}: {show(y)}"}
        for name, (_, points) in lines.items()
        for x, y in thin(points)
    ]
    colour = _colour("name:N", {name: colour for name, (colour, _) in lines.items()})
    y_scale = alt.Scale(domain=[0, top]) if top is not None else alt.Scale(zero=zero, nice=True)
    tiny = 0 < max((abs(v["y"]) for v in values), default=1.0) < 1e-3
    axis = alt.Axis(tickCount=4, format=".0%" if share else "~e" if tiny else "~g")
    x_scale = alt.Scale(nice=False, padding=4)
    x = alt.X(
        "x:Q", title="step", scale=x_scale, axis=alt.Axis(tickCount=5, format=",d", tickMinStep=1)
    )
    base = _chart(values).encode(
        x=x, y=alt.Y("y:Q", title=None, scale=y_scale, axis=axis), color=colour
    )
    layers: list[Any] = [
        base.mark_line(strokeWidth=1.8, aria=False, strokeJoin="round"),
        # Many points are a line to look at; unseen dots keep their tooltips.
        base.mark_circle(size=40, opacity=0 if len(values) > 40 else 1).encode(description="tip:N"),
    ]
    if limit_line is not None:
        flat = _chart([{"at": limit_line, "tip": f"tolerance {number(limit_line)}"}])
        layers.append(
            flat.mark_rule(color=COLOURS["failed"], strokeDash=[3, 3]).encode(
                y=alt.Y("at:Q", scale=y_scale), description="tip:N"
            )
        )
    return _svg(alt.layer(*layers), PANEL, label)


def score_histogram(
    kept: Sequence[float],
    dropped: Sequence[float],
    cut: float | None,
    *,
    label: str,
) -> Markup:
    """Draw counts of judge scores in [0, 1]: dropped ones pale, the cut dashed."""
    values: list[dict[str, Any]] = []
    for name, scores in (("dropped", dropped), ("kept", kept)):
        counts = [0] * NUM_BINS
        for score in scores:
            counts[min(int(score * NUM_BINS), NUM_BINS - 1)] += 1
        for i, count in enumerate(counts):
            if count:
                low, high = i / NUM_BINS, (i + 1) / NUM_BINS
                tip = f"score {low:.2f} to {high:.2f}: {count:,} {name}"
                values.append({"low": low, "high": high, "count": count, "name": name, "tip": tip})
    x_scale = alt.Scale(domain=[0, 1])
    bars = (
        _chart(values)
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X(
                "low:Q", bin="binned", title="judge score (harder to the right)", scale=x_scale
            ),
            x2="high:Q",
            y=alt.Y(
                "count:Q",
                title=None,
                stack="zero",
                axis=alt.Axis(tickCount=4, format=",d", tickMinStep=1),
            ),
            color=_colour("name:N", {"dropped": "dropped", "kept": "accent"}),
            description="tip:N",
        )
    )
    if cut is None:
        return _svg(bars, PANEL, label)
    line = _chart([{"at": cut, "tip": f"cut at {cut:.3f}"}])
    rule = line.mark_rule(color=COLOURS["ink"], strokeDash=[4, 3], strokeWidth=1.3).encode(
        x=alt.X("at:Q", scale=x_scale), description="tip:N"
    )
    return _svg(alt.layer(bars, rule), PANEL, label)


def scatter(
    points: Sequence[tuple[float, float, str]], *, x_title: str, y_title: str, label: str
) -> Markup:
    """Draw shares against shares as (x, y, tooltip); above MAX_DOTS, every n-th point."""
    every = max(1, -(-len(points) // MAX_DOTS))
    values = [{"x": x, "y": y, "tip": tip} for x, y, tip in points[::every]]
    chart = (
        _chart(values)
        .mark_circle(size=26, opacity=0.45, color=COLOURS["accent"])
        .encode(
            x=alt.X(
                "x:Q", title=x_title, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(tickCount=5)
            ),
            y=alt.Y(
                "y:Q",
                title=y_title,
                scale=alt.Scale(domain=[-0.03, 1.03], nice=False),
                axis=alt.Axis(format=".0%", values=[0, 0.25, 0.5, 0.75, 1]),
            ),
            description="tip:N",
        )
    )
    return _svg(chart, PANEL, label)


def stacked_steps(
    counts: Sequence[Mapping[str, float]],
    parts: Sequence[tuple[str, str, str]],
    *,
    label: str,
    max_bars: int = 40,
) -> Markup:
    """Draw counts per step, stacked: rows of `step` and a count per part (key, colour, meaning)."""
    width = max(1, -(-len(counts) // max_bars))
    values: list[dict[str, Any]] = []
    for start in range(0, len(counts), width):
        block = counts[start : start + width]
        first, last = number(block[0]["step"]), number(block[-1]["step"])
        when = f"step {first}" if first == last else f"steps {first} to {last}"
        for rank, (key, _, meaning) in enumerate(parts):
            count = sum(float(row.get(key) or 0.0) for row in block)
            if count:
                tip = f"{when}: {number(count)} {meaning}"
                values.append(
                    {"x": start // width, "count": count, "name": key, "rank": rank, "tip": tip}
                )
    num_bars = -(-len(counts) // width)
    ticks = sorted({0, num_bars // 2, num_bars - 1})
    names = {tick: number(counts[tick * width]["step"]) for tick in ticks}
    text = " : ".join(f"datum.value == {tick} ? '{name}'" for tick, name in names.items()) + " : ''"
    chart = (
        _chart(values)
        .mark_bar()
        .encode(
            x=alt.X(
                "x:O",
                title="step",
                scale=alt.Scale(domain=list(range(num_bars)), paddingInner=0.12, paddingOuter=0),
                axis=alt.Axis(labelExpr=text, labelAngle=0, ticks=False, labelOverlap=False),
            ),
            y=alt.Y("count:Q", title=None, axis=alt.Axis(tickCount=4, format=",d", tickMinStep=1)),
            color=_colour("name:N", {key: colour for key, colour, _ in parts}),
            order=alt.Order("rank:Q"),
            description="tip:N",
        )
    )
    return _svg(chart, PANEL, label)


def bars(rows: Sequence[tuple[str, float, str]], *, colours: Sequence[str], label: str) -> Markup:
    """Draw horizontal bars, in order: (name, value, text beside the bar)."""
    values = [{"name": n, "value": v, "text": t, "tip": f"{n}: {t}"} for n, v, t in rows]
    order = [n for n, _, _ in rows]
    most = max((v for _, v, _ in rows), default=1.0) or 1.0
    base = _chart(values).encode(
        y=alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labelColor=COLOURS["ink"])),
        x=alt.X(
            "value:Q", title=None, axis=None, scale=alt.Scale(domain=[0, most * 1.2], nice=False)
        ),
    )
    colour = _colour("name:N", dict(zip(order, colours, strict=True)))
    drawn = base.mark_bar(height=11, cornerRadiusEnd=2).encode(color=colour, description="tip:N")
    text = base.mark_text(align="left", dx=5, color=COLOURS["muted"], aria=False).encode(
        text="text:N"
    )
    return _svg(alt.layer(drawn, text), (640, 22 * len(rows) + 8), label)


def _chart(values: Sequence[Mapping[str, Any]]) -> Any:
    return alt.Chart(alt.InlineData(values=values))


def _colour(field: str, colours: Mapping[str, str]) -> Any:
    """Return the encoding of a field's values by colour name, in order, without a legend."""
    scale = alt.Scale(domain=list(colours), range=[COLOURS[name] for name in colours.values()])
    return alt.Color(field, scale=scale, legend=None)


def _svg(chart: Any, shape: tuple[int, int], label: str) -> Markup:
    width, height = shape
    return render(chart.properties(width=width, height=height).to_dict(), label=label)


def curve_panel(title: str, points: Points, *, share: bool, colour: str) -> Panel:
    """Draw one curve over steps, with its first and last value in words."""
    show = percent if share else number
    first, last = points[0], points[-1]
    label = (
        f"{title}: {show(first[1])} at step {number(first[0])}, {show(last[1])} at step "
        f"{number(last[0])}"
    )
    return Panel(
        title,
        sub=f"{show(first[1])} \u2192 {show(last[1])}",
        svg=curves({title: (colour, points)}, share=share, label=label),
    )
