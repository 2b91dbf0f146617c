"""Judge and pruning: the scores, their agreement with measurement, and the samples dropped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.artefacts import DROPPED, KEPT, PILOT, UNSCORED, VERDICTS
from posttrain.metrics import pass_rates
from posttrain.records import Sample
from posttrain.report.blocks import (
    Block,
    Example,
    Examples,
    Figure,
    Note,
    Panel,
    Passage,
    Prose,
    Section,
    Table,
    TableRow,
    conversation,
    number,
    percent,
    plural,
    small_multiples,
    text_row,
)
from posttrain.report.charts import scatter, score_histogram
from posttrain.report.read import Run, read_rows
from posttrain.tables import read_groups

NUM_EXAMPLES = 3


def judge_section(run: Run, samples: Mapping[str, Sample]) -> Section:
    """Return the section on the judge and on pruning."""
    blocks: list[Block] = []
    title = "Judge and prune"
    if "judge" not in run.stages and "prune" not in run.stages:
        blocks.append(
            Note(
                "No judge ran, so nothing was pruned: SFT, if the recipe has it, used all samples."
            )
        )
        return Section(slug="judge", title=title, blocks=blocks)
    kept, dropped, unscored = (
        read_rows(run.file("prune", table.name)) for table in (KEPT, DROPPED, UNSCORED)
    )
    if kept or dropped:
        blocks.append(counts_table(kept, dropped, unscored))
        blocks.append(histograms(kept, dropped))
    else:
        blocks.append(Note("The prune stage has not finished, so there is no cut to show."))
    blocks.extend(pilot_blocks(run))
    if "prune" in run.stages:
        blocks.extend(summary_blocks(run.stages["prune"].summary()))
    if kept or dropped:
        blocks.extend(scored_examples(kept, dropped, unscored, samples))
    return Section(slug="judge", title=title, blocks=blocks)


def counts_table(
    kept: Sequence[Mapping[str, Any]],
    dropped: Sequence[Mapping[str, Any]],
    unscored: Sequence[Mapping[str, Any]],
) -> Table:
    """Tabulate samples kept, dropped and unscored by capability, and the cut."""
    names = sorted({str(r["capability"]) for rows in (kept, dropped, unscored) for r in rows})
    rows: list[TableRow] = []
    for name in [None, *names]:
        k, d, u = (_of(rows_, name) for rows_ in (kept, dropped, unscored))
        cut = None if name is None else _cut(k, d)
        rows.append(
            text_row(
                name or "all",
                f"{len(k) + len(d) + len(u):,}",
                f"{len(k):,}",
                f"{len(d):,}",
                percent(len(d) / (len(k) + len(d)) if k or d else None),
                f"{len(u):,}",
                "" if name is None else number(cut),
                strong=name is None,
            )
        )
    return Table(
        title="Kept and dropped",
        header=(
            *("capability", "samples", "kept", "dropped"),
            *("share dropped", "unscored", "cut at score"),
        ),
        rows=rows,
        caption="Within each capability the samples with the lowest scores are dropped. "
        "Unscored samples are kept.",
    )


def histograms(kept: Sequence[Mapping[str, Any]], dropped: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw one histogram of scores per capability, with the cut."""
    names = sorted({str(r["capability"]) for rows in (kept, dropped) for r in rows})
    panels: list[Panel] = []
    for name in names:
        k, d = _of(kept, name), _of(dropped, name)
        cut = _cut(k, d)
        said = f"{name}: {len(k)} kept, {len(d)} dropped" + (
            "" if cut is None else f", cut at {cut:.3f}"
        )
        svg = score_histogram(
            _scores(k), _scores(d), cut, label=f"Histogram of judge scores, {said}"
        )
        panels.append(Panel(name, svg=svg))
    return small_multiples(
        "How hard the judge found the samples",
        panels,
        legend=[("dropped", "dropped"), ("accent", "kept")],
        caption="Samples by score. Dashed: the cut, which is the lowest score that was kept.",
    )


def pilot_blocks(run: Run) -> list[Block]:
    """Plot the judge's scores against measured failure rates."""
    pilot, verdicts = run.file("judge", PILOT), run.file("judge", VERDICTS.name)
    if pilot is None or verdicts is None:
        return [
            Note(
                f"The judge was not checked against measurement: {PILOT} or "
                f"{VERDICTS.name} is missing."
            )
        ]
    scores = {v.sample_id: v.score for v in VERDICTS.read(verdicts.parent)}
    failure = {sample_id: 1.0 - rate for sample_id, rate in pass_rates(read_groups(pilot)).items()}
    pairs = {i: (s, f) for i, f in failure.items() if (s := scores.get(i)) is not None}
    if len(pairs) < 2:
        return [
            Note(
                "The judge was not checked against measurement, because the pilot has fewer "
                "than two scored samples."
            )
        ]
    dots = [
        (s, f, f"{i}: score {s:.3f}, failed {percent(f, 0)}") for i, (s, f) in sorted(pairs.items())
    ]
    meaning = _meaning(run)
    svg = scatter(
        dots,
        x_title="judge score",
        y_title="failure rate",
        label=f"Judge score against measured failure rate. {meaning}",
    )
    return [
        Figure(
            title="The judge against measurement",
            panels=[Panel(plural(len(dots), "pilot sample"), svg=svg)],
            caption=f"{meaning} Each dot is a sample that the base model answered several times.",
        )
    ]


def _meaning(run: Run) -> str:
    """Describe the correlation within capabilities."""
    if "prune" not in run.stages:
        return "The prune stage, which checks the judge, has not finished."
    summary = run.stages["prune"].summary()
    within = (summary.get("spearman") or {}).get("within") or {}
    if within.get("mean") is None:
        return (
            "Within capabilities the scores or the failure rates are all equal, so there is no "
            "rank correlation, and the pilot says nothing about the judge."
        )
    low, high = within["low"], within["high"]
    told = (
        "Within capabilities, Spearman's rank correlation is "
        f"{_two_digits(within['mean'])} (95 % interval {_two_digits(low)} to {_two_digits(high)})"
    )
    if summary.get("earned") is None:
        return f"{told}, from too few samples to decide."
    if low > 0:
        return f"{told}: the model fails more often on samples with higher scores."
    if high < 0:
        return (
            f"{told}: the model fails less often on samples with higher scores, so pruning by this "
            "judge would drop the wrong ones."
        )
    return (
        f"{told}, which is not distinguishable from zero: nothing shows that pruning by this "
        "judge is better than pruning at random."
    )


def summary_blocks(summary: Mapping[str, Any]) -> list[Block]:
    """Tabulate the check of the judge: correlations, and its verdict in words."""
    blocks: list[Block] = []
    found = summary.get("spearman") or {}
    rows = [
        _correlation_row(name, found[name], strong=name == "within")
        for name in ("overall", "within")
        if name in found
    ]
    rows += [_correlation_row(n, one) for n, one in (found.get("capabilities") or {}).items()]
    if rows:
        table = Table(
            title="Rank correlation of score and failure rate",
            header=["among", "pilot samples", "Spearman", "95 % interval"],
            rows=rows,
            caption="within: samples are ranked inside their capability, and ranks are pooled. "
            "It decides the check, because pruning compares samples of one capability only. "
            "overall: all samples ranked together, which also reflects that one capability is "
            "harder than another. Below, each capability alone.",
        )
        blocks.append(table)
    if summary.get("verdict"):
        refusal = f" {summary['refusal']}" if summary.get("refusal") else ""
        blocks.append(Prose(f"{summary['verdict']}{refusal}"))
    if reasons := summary.get("unscored_reasons"):
        told = "; ".join(f"{reason} ({number(count)})" for reason, count in reasons.items())
        blocks.append(Prose(f"Reasons for unscored samples: {told}."))
    return blocks


def _correlation_row(name: str, found: Mapping[str, Any], *, strong: bool = False) -> TableRow:
    interval = f"{_two_digits(found.get('low'))} to {_two_digits(found.get('high'))}"
    cells = (number(found.get("num_samples")), _two_digits(found.get("mean")), interval)
    return text_row(name, *cells, strong=strong)


def _two_digits(value: float | None) -> str:
    return chr(0x2013) if value is None else f"{value:.2f}".replace("-", chr(0x2212))


def scored_examples(
    kept: Sequence[Mapping[str, Any]],
    dropped: Sequence[Mapping[str, Any]],
    unscored: Sequence[Mapping[str, Any]],
    samples: Mapping[str, Sample],
) -> list[Block]:
    """List the hardest and easiest samples, and those next to the cut, by capability."""
    hard, easy, edge = [], [], []
    for name in sorted({str(r["capability"]) for rows in (kept, dropped) for r in rows}):
        up = sorted(_of(kept, name), key=_score_then_id)
        down = sorted(_of(dropped, name), key=_score_then_id)
        hard += [_example(r, samples, "kept") for r in up[::-1][:NUM_EXAMPLES]]
        easy += [_example(r, samples, "dropped") for r in down[:NUM_EXAMPLES]]
        edge += [_example(r, samples, "dropped") for r in down[-1:]] + [
            _example(r, samples, "kept") for r in up[:1]
        ]
    blocks: list[Block] = [
        Examples(title, items=items)
        for title, items in (
            ("Highest scores: kept", hard),
            ("Lowest scores: dropped", easy),
            ("Next to the cut", edge),
            (
                "Unscored: kept",
                [_example(r, samples, "unscored") for r in unscored[:NUM_EXAMPLES]],
            ),
        )
        if items
    ]
    return blocks


def _example(row: Mapping[str, Any], samples: Mapping[str, Sample], fate: str) -> Example:
    sample = samples.get(str(row["sample_id"]))
    score = row.get("score")
    facts = [
        fate,
        str(row["capability"]),
        "no score" if score is None else f"score {float(score):.3f}",
    ]
    passages = [] if sample is None else conversation(sample.messages)
    passages.append(Passage("reason", str(row.get("reason") or "")))
    return Example(title=str(row["sample_id"]), facts=facts, passages=passages)


def _of(rows: Sequence[Mapping[str, Any]], name: str | None) -> list[Mapping[str, Any]]:
    return [r for r in rows if name is None or str(r["capability"]) == name]


def _scores(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(r["score"]) for r in rows if r.get("score") is not None]


def _cut(kept: Sequence[Mapping[str, Any]], dropped: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the lowest score that was kept; None if nothing was dropped or nothing kept."""
    return min(_scores(kept)) if kept and dropped else None


def _score_then_id(row: Mapping[str, Any]) -> tuple[float, str]:
    return (
        float(row["score"]) if row.get("score") is not None else math.inf,
        str(row["sample_id"]),
    )
