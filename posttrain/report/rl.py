"""Online RL: the curriculum's flow, the use of generated tokens, and weight-sync parity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.artefacts import CURRICULUM, PARITY
from posttrain.report.blocks import (
    Block,
    Figure,
    Note,
    Panel,
    Table,
    number,
    percent,
    small_multiples,
    text_row,
)
from posttrain.report.charts import curves, stacked_steps
from posttrain.report.read import Run, read_rows, series
from posttrain.report.svg import stage_colour

RL_COLOUR = stage_colour("rl")
FLOW = (
    ("trained", RL_COLOUR, "trained on, with signal"),
    ("filler", "filler", "trained on without signal, because the refill limit was reached"),
    ("surplus", "surplus", "with signal, but the batch was full"),
    ("stopped", "dropped", "stopped after the pilot: signal was unlikely"),
    ("undecided", "undecided", "undecided by the verifier"),
    ("no_signal_solved", "solved", "no signal: all passed"),
    ("no_signal_failed", "failed", "no signal: all failed"),
)
"""Key in curriculum.jsonl, colour and meaning of each use of a proposed prompt."""
_FLOW_KEYS = [key for key, _, _ in FLOW]

PURPOSES = (
    ("whole", "generated as whole groups"),
    ("pilot", "generated as pilots"),
    ("continuation", "generated to complete a group after its pilot"),
    ("refill", "generated to replace groups without signal"),
    ("exploration", "generated to explore"),
    ("review", "generated to review solved prompts"),
    ("retry", "generated to retry unsolved prompts"),
)
FATES = (
    ("trained", "in groups with signal, trained on"),
    ("filler", "in groups without signal, trained on to fill the batch"),
    ("discarded", "discarded"),
)
"""Key in curriculum.jsonl after tokens_, and meaning."""


def flow_blocks(run: Run) -> list[Block]:
    """Draw pass rates and the curriculum's flow by capability, and tabulate the use of tokens."""
    rows = read_rows(run.file("rl", CURRICULUM))
    if not rows:
        return [Note("There is no curriculum flow: curriculum.jsonl is missing or empty.")]
    by_capability: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (str(r["capability"]), float(r["step"]))):
        by_capability.setdefault(str(row["capability"]), []).append(row)
    has_tokens = any("tokens_trained" in row for row in rows)
    return [
        _pass_rates(by_capability),
        _flow(by_capability),
        _flow_table(by_capability),
        *([_spending(rows)] if has_tokens else []),
    ]


def _pass_rates(by_capability: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    panels: list[Panel] = []
    for name, rows in by_capability.items():
        points = [
            (float(r["step"]), float(r["pass_rate"]))
            for r in rows
            if r.get("pass_rate") is not None
        ]
        if not points:
            continue
        said = f"{name}: {percent(points[0][1])} at step {number(points[0][0])}, "
        said += f"{percent(points[-1][1])} at step {number(points[-1][0])}"
        svg = curves(
            {name: (RL_COLOUR, points)},
            share=True,
            top=1.0,
            label=f"Pass rate of proposed prompts, {said}",
        )
        panels.append(Panel(name, svg=svg))
    return small_multiples(
        "Pass rate of proposed prompts",
        panels,
        caption="The curriculum proposes harder prompts as the policy improves, so a flat line "
        "does not mean that nothing is learned. The held-out table shows progress.",
    )


def _flow(by_capability: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    panels: list[Panel] = []
    for name, rows in by_capability.items():
        totals = "; ".join(f"{number(_total(rows, key))} {meaning}" for key, _, meaning in FLOW)
        svg = stacked_steps(rows, FLOW, label=f"Prompts proposed by step, {name}: {totals}")
        panels.append(Panel(name, svg=svg))
    return small_multiples(
        "Use of proposed prompts",
        panels,
        legend=[(colour, meaning) for _, colour, meaning in FLOW],
        caption="Groups of answers per step. A group without signal (all passed or all failed) "
        "has no gradient, and is replaced before the trainer computes anything with it.",
    )


def _flow_table(by_capability: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    rows = [
        text_row(name, *(number(_total(found, key)) for key in ("proposed", *_FLOW_KEYS, "tokens")))
        for name, found in by_capability.items()
    ]
    header = (
        *("capability", "proposed", "trained on", "filler", "surplus", "stopped"),
        *("undecided", "all passed", "all failed", "tokens"),
    )
    return Table(
        title="Proposed prompts, all steps", header=header, rows=rows, caption="Groups of answers."
    )


def _spending(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Tabulate generated tokens by purpose and by fate."""
    spent = _total(rows, "tokens")
    lines = [
        text_row(meaning, number(tokens), percent(tokens / spent))
        for names in (PURPOSES, FATES)
        for key, meaning in names
        if (tokens := _total(rows, f"tokens_{key}"))
    ]
    scored = _total(rows, "scored")
    told = f", and {number(scored)} scored by the likelihood probe" if scored else ""
    return Table(
        title="Use of generated tokens",
        header=["", "tokens", "share"],
        rows=lines,
        caption=f"{number(spent)} generated{told}. The first lines say why tokens were generated, "
        "the last ones what they were used for. Each of the two adds up to all.",
    )


def _total(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(float(r.get(key) or 0.0) for r in rows)


def parity_block(run: Run) -> Block:
    """Draw the difference of log-probabilities between trainer and engine after each sync."""
    rows = read_rows(run.file("rl", PARITY))
    engine = run.recipe.get("engine") or {}
    tolerance = engine.get("parity_tolerance")
    points = series(rows, "parity/mean")
    if not points:
        return Note("There is no weight-sync parity: parity.jsonl is missing or empty.")
    worst = max(y for _, y in points)
    label = (
        f"Mean log-probability difference between trainer and engine, at most {number(worst)} nats"
    )
    line = (
        float(tolerance) if isinstance(tolerance, (int, float)) and worst > tolerance / 20 else None
    )
    svg = curves({"difference": (RL_COLOUR, points)}, zero=True, limit_line=line, label=label)
    told = "" if tolerance is None else f" The run stops above {number(tolerance)}."
    return Figure(
        title="Weight-sync parity",
        panels=[Panel("mean |difference|, nats per token", sub=f"worst {number(worst)}", svg=svg)],
        caption="After every weight sync the engine and the trainer's model score the same few "
        f"sequences. Shown: the mean absolute difference of token log-probabilities.{told}",
    )
