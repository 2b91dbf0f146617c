"""The training stages: their curves, the curriculum's flow, weight-sync parity, and pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.artefacts import METRICS, PAIRS
from posttrain.recipe.schema import training_stages
from posttrain.records import PreferencePair
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
    conversation,
    counted,
    duration,
    number,
    percent,
    plural,
    text_row,
)
from posttrain.report.charts import curve_panel
from posttrain.report.read import Run, series
from posttrain.report.rl import flow_blocks, parity_block
from posttrain.report.svg import stage_colour
from posttrain.tables import read_metrics


@dataclass(frozen=True, slots=True)
class Curve:
    """A panel of training curves."""

    title: str
    metric: str
    """Name in metrics.jsonl, without namespace."""
    is_share: bool = False


LOSS = Curve("loss", "loss")
GRADIENT_NORM = Curve("gradient norm", "grad_norm")
LEARNING_RATE = Curve("learning rate", "learning_rate")


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
            Curve("token accuracy", "mean_token_accuracy", is_share=True),
            LEARNING_RATE,
            GRADIENT_NORM,
        ),
    ),
    "rl": TrainedBy(
        title="Online RL",
        method="grpo",
        describe=lambda _: "Online RL (GRPO) on verified answers, prompts chosen by the curriculum",
        curves=(
            Curve("reward", "reward"),
            Curve("completion length, tokens", "completions/mean_length"),
            Curve("answers cut off at the limit", "completions/clipped_ratio", is_share=True),
            Curve("entropy, nats per token", "entropy"),
            LOSS,
            GRADIENT_NORM,
            Curve("KL to the start of the stage", "kl"),
            Curve("clipped updates", "clip_ratio/region_mean", is_share=True),
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
            Curve("pairs ranked right", "rewards/accuracies", is_share=True),
            Curve("reward margin", "rewards/margins"),
            GRADIENT_NORM,
        ),
    ),
}


def trained_by(stage: str) -> TrainedBy:
    """Return the description of a training stage; a plain one for stages unknown here."""
    plain = TrainedBy(title=stage, method=stage, describe=lambda _: f"Trained by {stage}")
    return TRAINED_BY.get(stage, plain)


WORST: Sequence[tuple[str, str, bool]] = (
    ("tokens of the fullest expert over the mean", "moe/load_max", False),
    ("evenness of the load", "moe/load_entropy", True),
    ("experts without a token", "moe/dead", True),
)
OF_A_LAYER: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "load_max": ("fullest over mean", number),
    "load_entropy": ("evenness", percent),
    "dead": ("without a token", percent),
    "router_rms": ("router logits, RMS", number),
}


def sections(run: Run) -> list[Section]:
    """Return one section per training stage, in running order."""
    return [
        Section(slug=stage, title=trained_by(stage).title, blocks=_blocks_of(run, stage))
        for stage in training_stages()
    ]


def _blocks_of(run: Run, stage: str) -> list[Block]:
    blocks = _curves_of(run, stage)
    if stage == "rl" and stage in run.stages:
        return [*flow_blocks(run), *blocks, parity_block(run)]
    return [*blocks, *_pair_blocks(run)] if stage == "dpo" else blocks


def _pair_blocks(run: Run) -> list[Block]:
    path = run.file("pairs", PAIRS.name)
    if path is None:
        return [
            Note(
                "There are no preference pairs: the pairs stage has not finished, or the "
                "recipe has no dpo section."
            )
        ]
    pairs = PAIRS.read(path.parent)
    if not pairs:
        return [Note("The RL rollouts gave no usable pair, so DPO had no data.")]
    return pair_blocks(pairs)


def pair_blocks(pairs: Sequence[PreferencePair]) -> list[Block]:
    """Tabulate pairs by the fault of the rejected answer, with a few of each to read."""
    by_case: dict[str, list[PreferencePair]] = {}
    for pair in pairs:
        by_case.setdefault(pair.corner_case, []).append(pair)
    ordered = sorted(by_case.items(), key=lambda item: (-len(item[1]), item[0]))
    table = Table(
        title="Preference pairs by corner case",
        header=["the rejected answer", "pairs", "share"],
        rows=[
            text_row(case.replace("_", " "), f"{len(ps):,}", percent(len(ps) / len(pairs)))
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
                Passage("chosen", pair.chosen, tone="passed"),
                Passage("rejected", pair.rejected, tone="failed"),
            ],
        )
        for case, ps in ordered
        for pair in ps[:2]
    ]
    return [table, Examples("Pairs to read", items=examples)]


def _curves_of(run: Run, stage: str) -> list[Block]:
    if stage not in run.stages:
        asked = run.recipe.get(stage) is not None
        why = "has not finished" if asked else "is not part of this recipe"
        return [Note(f"The {stage} stage {why}.")]
    blocks: list[Block] = []
    if facts := _facts(run.stages[stage].summary()):
        blocks.append(Prose(facts))
    path = run.file(stage, METRICS)
    rows: list[dict[str, Any]] = [] if path is None else read_metrics(path)
    panels: list[Panel] = []
    for curve in trained_by(stage).curves:
        if found := series(rows, curve.metric):
            colour = stage_colour(stage)
            panels.append(curve_panel(curve.title, found, share=curve.is_share, colour=colour))
    if panels:
        blocks.append(Figure(title="Training curves", panels=panels))
        blocks.extend(expert_blocks(rows, stage))
    else:
        blocks.append(
            Note(
                f"There are no training curves: metrics.jsonl of the {stage} stage is missing "
                "or empty."
            )
        )
    return blocks


def _facts(summary: Mapping[str, Any]) -> str:
    numbers = {
        key: value
        for key, value in summary.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    seconds = numbers.pop("seconds", None)
    parts = ([] if seconds is None else [f"took {duration(seconds)}"]) + counted(numbers)
    return (", ".join(parts) + ".").capitalize() if parts else ""


def expert_blocks(rows: Sequence[Mapping[str, Any]], stage: str) -> list[Block]:
    """Draw the worst layer and gradients by kind, and tabulate layers; nothing for a dense model.

    `rows` are those of metrics.jsonl.
    """
    colour = stage_colour(stage)
    panels = [
        curve_panel(f"{title}, worst layer", found, share=share, colour=colour)
        for title, name, share in WORST
        if (found := series(rows, name))
    ]
    if not panels:
        return []
    kinds = sorted({key.partition("/grad_norm/")[2] for row in rows for key in row} - {""})
    panels += [
        curve_panel(
            f"gradient norm, {kind.replace('_', ' ')}",
            found,
            share=False,
            colour=colour,
        )
        for kind in kinds
        if (found := series(rows, f"grad_norm/{kind}"))
    ]
    return [Figure(title="Mixture of experts", panels=panels), _layers(rows, stage)]


def _layers(rows: Sequence[Mapping[str, Any]], stage: str) -> Table:
    """Return the layers' metrics as last logged."""
    prefix = f"{stage}/moe/layer_"
    last = next(row for row in reversed(rows) if any(key.startswith(prefix) for key in row))
    layers = sorted({int(k.removeprefix(prefix).split("/")[0]) for k in last if prefix in k})
    return Table(
        title="Experts by layer",
        header=["layer", *(title for title, _ in OF_A_LAYER.values())],
        rows=[
            text_row(
                str(layer),
                *(
                    show(float(last[f"{prefix}{layer}/{name}"]))
                    for name, (_, show) in OF_A_LAYER.items()
                ),
            )
            for layer in layers
        ],
        caption=f"Logged at step {number(float(last['step']))}. Fullest over mean: 1 is even. "
        "Evenness: entropy of the load over its maximum.",
    )
