"""The training stages: their curves, the curriculum's flow, weight-sync parity, and pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.artefacts import CURRICULUM, METRICS, PAIRS, PARITY
from posttrain.recipe.schema import training_stages
from posttrain.records import PreferencePair
from posttrain.report.blocks import (
    Block,
    Cell,
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
    duration,
    number,
    percent,
    plural,
)
from posttrain.report.charts import curve_panel, curves, stacked_steps
from posttrain.report.experts import expert_blocks
from posttrain.report.headline import MAX_PANELS
from posttrain.report.judging import conversation
from posttrain.report.read import Run, read_rows, series
from posttrain.report.svg import stage_colour
from posttrain.tables import read_json, read_metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A panel of training curves."""

    title: str
    metrics: tuple[str, ...]
    """Names in metrics.jsonl, without namespace; the first that was logged is drawn."""
    is_share: bool = False


LOSS = Curve(title="loss", metrics=("loss", "train_loss"))
GRADIENT_NORM = Curve(title="gradient norm", metrics=("grad_norm",))
LEARNING_RATE = Curve(title="learning rate", metrics=("learning_rate",))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedBy:
    """Description of a training stage for the report and the card."""

    title: str
    method: str
    """Tag of the method on Hugging Face."""
    describe: Callable[[Run], str]
    """Function that describes what was trained on."""
    curves: Sequence[Curve] = (LOSS, LEARNING_RATE, GRADIENT_NORM)


def _describe_sft(run: Run) -> str:
    if "prune" in run.stages:
        return "SFT on the answers of the samples that the judge found hard"
    return "SFT"


TRAINED_BY: Mapping[str, TrainedBy] = {
    "sft": TrainedBy(
        title="SFT",
        method="sft",
        describe=_describe_sft,
        curves=(
            LOSS,
            Curve(title="token accuracy", metrics=("mean_token_accuracy",), is_share=True),
            LEARNING_RATE,
            GRADIENT_NORM,
        ),
    ),
    "rl": TrainedBy(
        title="Online RL",
        method="grpo",
        describe=lambda _: "Online RL (GRPO) on verified answers, prompts chosen by the curriculum",
        curves=(
            Curve(title="reward", metrics=("reward",)),
            Curve(
                title="completion length, tokens",
                metrics=("completions/mean_length", "completion_length", "mean_length"),
            ),
            Curve(
                title="answers cut off at the limit",
                metrics=("completions/clipped_ratio", "clipped_ratio", "truncated"),
                is_share=True,
            ),
            Curve(title="entropy, nats per token", metrics=("entropy",)),
            LOSS,
            GRADIENT_NORM,
            Curve(title="KL to the start of the stage", metrics=("kl",)),
            Curve(
                title="clipped updates",
                metrics=("clip_ratio/region_mean", "clip_ratio"),
                is_share=True,
            ),
        ),
    ),
    "dpo": TrainedBy(
        title="DPO",
        method="dpo",
        describe=lambda _: (
            "A light DPO on passed and failed answers to the same prompt, from the RL rollouts"
        ),
        curves=(
            LOSS,
            Curve(
                title="pairs ranked right",
                metrics=("rewards/accuracies", "accuracies"),
                is_share=True,
            ),
            Curve(title="reward margin", metrics=("rewards/margins", "margins")),
            GRADIENT_NORM,
        ),
    ),
}


def trained_by(stage: str) -> TrainedBy:
    """Return the description of a training stage; a plain one for stages unknown here."""
    plain = TrainedBy(title=stage, method=stage, describe=lambda _: f"Trained by {stage}")
    return TRAINED_BY.get(stage, plain)


RL_COLOUR = stage_colour("rl")
FLOW = (
    ("trained", RL_COLOUR, "trained on, with signal"),
    ("filler", "filler", "trained on without signal, because the refill cap bound"),
    ("surplus", "surplus", "with signal, one too many"),
    ("stopped", "dropped", "stopped after the pilot: little to expect of the rest"),
    ("undecided", "undecided", "undecided by the verifier"),
    ("no_signal_solved", "solved", "no signal: all passed"),
    ("no_signal_failed", "failed", "no signal: all failed"),
)
"""Key in curriculum.jsonl, colour and meaning of each fate of a proposed prompt."""

PURPOSES = (
    ("whole", "drawn as whole groups"),
    ("pilot", "drawn as pilots"),
    ("continuation", "drawn to go on after a pilot"),
    ("refill", "drawn to replace groups without signal"),
    ("exploration", "drawn to explore"),
    ("review", "drawn to review what was solved"),
    ("retry", "drawn to retry what was unsolved"),
)
FATES = (
    ("trained", "became groups with signal, trained on"),
    ("filler", "became fillers, trained on without signal"),
    ("discarded", "were discarded"),
)
"""Key in curriculum.jsonl after tokens_, and meaning."""


def sections(run: Run) -> list[Section]:
    """Return one section per training stage, in running order."""
    blocks_of = {"rl": _rl_blocks, "dpo": _dpo_blocks}
    return [
        Section(
            slug=stage,
            title=trained_by(stage).title,
            blocks=blocks_of[stage](run) if stage in blocks_of else _curves_of(run, stage),
        )
        for stage in training_stages()
    ]


def _dpo_blocks(run: Run) -> list[Block]:
    """Draw curves, and tabulate pairs by corner case."""
    blocks = _curves_of(run, "dpo") if "dpo" in run.stages or run.recipe.get("dpo") else []
    path = run.file("pairs", PAIRS.name)
    if path is None:
        blocks.append(
            Note(
                text="No preference pairs: the pairs stage has not finished or the recipe has no "
                "dpo section."
            )
        )
    elif pairs := PAIRS.read(path.parent):
        blocks.extend(pair_blocks(pairs))
    else:
        blocks.append(
            Note(text="The RL rollouts held no usable pair, so DPO had nothing to learn from.")
        )
    return blocks


def pair_blocks(pairs: Sequence[PreferencePair], num_examples: int = 2) -> list[Block]:
    """Tabulate pairs by the fault of the rejected answer, with a few of each to read."""
    by_case: dict[str, list[PreferencePair]] = {}
    for pair in pairs:
        by_case.setdefault(pair.corner_case, []).append(pair)
    ordered = sorted(by_case.items(), key=lambda item: (-len(item[1]), item[0]))
    table = Table(
        title="Preference pairs by corner case",
        header=["the rejected answer", "pairs", "share"],
        rows=[
            TableRow(
                head=case.replace("_", " "),
                cells=[Cell(text=f"{len(ps):,}"), Cell(text=percent(len(ps) / len(pairs)))],
            )
            for case, ps in ordered
        ],
        caption=f"{plural(len(pairs), 'pair')} from "
        f"{plural(len({p.prompt_id for p in pairs}), 'prompt')}: "
        "two answers of the policy to the same prompt, one passed and one failed.",
    )
    examples = [
        Example(
            title=pair.prompt_id,
            facts=[
                case.replace("_", " "),
                *(f"{k} {v}" for k, v in pair.origin.items() if isinstance(v, (int, str))),
            ],
            passages=[
                *conversation(pair.prompt),
                Passage(name="chosen", text=pair.chosen, tone="passed"),
                Passage(name="rejected", text=pair.rejected, tone="failed"),
            ],
        )
        for case, ps in ordered
        for pair in ps[:num_examples]
    ]
    return [table, Examples(title="Pairs to read", items=examples)]


def _rl_blocks(run: Run) -> list[Block]:
    """Draw pass rates, the curriculum's flow, training curves, and parity."""
    blocks: list[Block] = []
    if "rl" not in run.stages:
        return _curves_of(run, "rl")
    rows = read_rows(run.file("rl", CURRICULUM))
    if rows:
        by_capability: dict[str, list[dict[str, Any]]] = {}
        for row in sorted(rows, key=lambda r: (str(r["capability"]), float(r["step"]))):
            by_capability.setdefault(str(row["capability"]), []).append(row)
        blocks.append(_pass_rates(by_capability))
        blocks.append(_flow(by_capability))
        blocks.append(_flow_table(by_capability))
        if any("tokens_trained" in row for row in rows):
            blocks.append(_spending(rows))
    else:
        blocks.append(Note(text="No curriculum flow: curriculum.jsonl is missing or empty."))
    blocks.extend(_curves_of(run, "rl"))
    blocks.append(_parity(run))
    return blocks


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
        panels.append(Panel(title=name, svg=svg))
    return Figure(
        title="Pass rate of the prompts that were proposed",
        panels=panels[:MAX_PANELS],
        more=panels[MAX_PANELS:],
        caption="The curriculum moves on to harder prompts as the policy improves, so a flat "
        "line here is no standstill: "
        "read progress from the held-out table.",
    )


def _flow(by_capability: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    panels: list[Panel] = []
    for name, rows in by_capability.items():
        totals = "; ".join(f"{number(_total(rows, key))} {meaning}" for key, _, meaning in FLOW)
        svg = stacked_steps(rows, FLOW, label=f"Prompts proposed by step, {name}: {totals}")
        panels.append(Panel(title=name, svg=svg))
    return Figure(
        title="Where the proposed prompts went",
        panels=panels[:MAX_PANELS],
        more=panels[MAX_PANELS:],
        legend=[(colour, meaning) for _, colour, meaning in FLOW],
        caption="Groups of answers per step. A group without signal (all passed or all failed) "
        "teaches nothing and is "
        "replaced before the trainer spends a forward pass on it.",
    )


def _flow_table(by_capability: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    rows = [
        TableRow(
            head=name,
            cells=[
                Cell(text=number(_total(found, "proposed"))),
                *(Cell(text=number(_total(found, key))) for key, _, _ in FLOW),
                Cell(text=number(_total(found, "tokens"))),
            ],
        )
        for name, found in by_capability.items()
    ]
    header = [
        "capability",
        "proposed",
        "trained on",
        "filler",
        "surplus",
        "stopped",
        "undecided",
        "all passed",
        "all failed",
        "tokens",
    ]
    return Table(
        title="The flow in sum", header=header, rows=rows, caption="Groups over all steps."
    )


def _spending(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Tabulate generated tokens by purpose and by fate."""
    spent = _total(rows, "tokens")
    lines = [
        TableRow(
            head=meaning, cells=[Cell(text=number(tokens)), Cell(text=percent(tokens / spent))]
        )
        for names in (PURPOSES, FATES)
        for key, meaning in names
        if (tokens := _total(rows, f"tokens_{key}"))
    ]
    scored = _total(rows, "scored")
    told = f", and {number(scored)} scored by the likelihood probe" if scored else ""
    return Table(
        title="What tokens were spent on",
        header=["", "tokens", "share"],
        rows=lines,
        caption=f"{number(spent)} generated{told}. The first lines say why they were drawn, the "
        "last ones what became of them; each sums to all.",
    )


def _total(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(float(r.get(key) or 0.0) for r in rows)


def _curves_of(run: Run, stage: str) -> list[Block]:
    if stage not in run.stages:
        asked = run.recipe.get(stage) is not None
        why = "has not finished" if asked else "is not part of this recipe"
        return [Note(text=f"The {stage} stage {why}.")]
    blocks: list[Block] = []
    if facts := _facts(run.stages[stage].summary()):
        blocks.append(Prose(text=facts))
    path = run.file(stage, METRICS)
    rows: list[dict[str, Any]] = [] if path is None else read_metrics(path)
    panels: list[Panel] = []
    for curve in trained_by(stage).curves:
        if found := series(rows, *curve.metrics):
            colour = stage_colour(stage)
            panels.append(curve_panel(curve.title, found, share=curve.is_share, colour=colour))
    if panels:
        blocks.append(Figure(title="Training curves", panels=panels))
        blocks.extend(expert_blocks(rows, stage))
    else:
        blocks.append(
            Note(
                text=f"No training curves: metrics.jsonl of the {stage} stage is missing or empty."
            )
        )
    return blocks


def _facts(summary: Mapping[str, Any]) -> str:
    parts = [
        f"took {duration(value)}"
        if key == "seconds"
        else f"{key.replace('_', ' ')} {number(value)}"
        for key, value in summary.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    return (", ".join(parts) + ".").capitalize() if parts else ""


def _parity(run: Run) -> Block:
    rows = read_rows(run.file("rl", PARITY))
    engine = run.recipe.get("engine") or {}
    tolerance = engine.get("parity_tolerance")
    points = series(rows, "parity/mean")
    if not points:
        return Note(text="No weight-sync parity: parity.jsonl is missing or empty.")
    worst = max(y for _, y in points)
    label = (
        f"Mean log-probability difference between trainer and engine, at most {number(worst)} nats"
    )
    line = (
        float(tolerance) if isinstance(tolerance, (int, float)) and worst > tolerance / 20 else None
    )
    svg = curves({"difference": (RL_COLOUR, points)}, zero=True, limit_line=line, label=label)
    told = "" if tolerance is None else f" The run stops past {number(tolerance)}."
    return Figure(
        title="Weight-sync parity",
        panels=[
            Panel(title="mean |difference|, nats per token", sub=f"worst {number(worst)}", svg=svg)
        ],
        caption="After every weight sync the engine scores a few sequences, and so does the "
        "trainer's model: the mean "
        f"absolute difference of their token log-probabilities.{told}",
    )


def sft_parity(run: Run) -> Mapping[str, Any]:
    """Return the SFT stage's parity.json; empty without one."""
    path = run.file("sft", "parity.json")
    value = {} if path is None else read_json(path)
    return value if isinstance(value, dict) else {}
