"""Report on verification: outcomes by verifier and kind, reward-hack flags, spot checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.artefacts import ANSWER_JUDGE, EVALUATION, METRICS, SANDBOX, outcome_tables
from posttrain.metrics import rise_p_value
from posttrain.records import Outcome, Prompt
from posttrain.report.blocks import (
    Block,
    Cell,
    Example,
    Examples,
    Facts,
    Figure,
    Note,
    Panel,
    Passage,
    Section,
    Table,
    TableRow,
    conversation,
    percent,
    plural,
    text_row,
)
from posttrain.report.charts import curve_panel, curves
from posttrain.report.read import Run, rollout_steps, series
from posttrain.report.svg import stage_colour
from posttrain.tables import read_json, read_metrics, read_table

_OUTCOME_COLUMNS = ("passed", "score", "why", "kind", "reward_hack_flags")
_OLD_FLAGS = "touches"
"""Name of the column reward_hack_flags in tables of earlier versions."""
COLUMNS = ("prompt_id", "step", "index", *_OUTCOME_COLUMNS, _OLD_FLAGS, "text")
NUM_SPOT_CHECKS = 12
NUM_UNDECIDED = 5
MIN_GROUP = 4
"""Answers of a prompt from which a lone success counts as rare."""
_SIGNIFICANT = 0.001
RL_COLOUR = stage_colour("rl")
_LABELS = {"length": "length, taken", "format": "form, given", "language": "script, given"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Decided:
    """One verified answer of a table."""

    prompt_id: str
    verifier: str
    step: int
    outcome: Outcome
    text: str


def section(run: Run, prompts: Mapping[str, Prompt]) -> Section:
    """Return the section on verification."""
    places = read_decided(run, prompts)
    verifiers = sorted({one.verifier for found in places.values() for one in found})
    blocks: list[Block] = [_outcomes(verifier, places) for verifier in verifiers]
    if not blocks:
        blocks.append(Note("No answer was verified yet."))
    if undecided := undecided_answers(one for found in places.values() for one in found):
        blocks.append(undecided)
    if facts := _means(run):
        blocks.append(facts)
    rollouts = places.get("rl", [])
    blocks.extend(reward_hack_blocks(rollouts))
    if checks := spot_checks(rollouts, prompts):
        blocks.append(checks)
    if shaped := _shaping(run):
        blocks.append(shaped)
    return Section(slug="verification", title="Verification", blocks=blocks)


def read_decided(run: Run, prompts: Mapping[str, Prompt]) -> dict[str, list[Decided]]:
    """Return the answers verified at each place (`eval-base`, `rl`, ...), in stage order."""
    places: dict[str, list[Decided]] = {}
    for name, stage in run.stages.items():
        if name.startswith(EVALUATION):
            tables = outcome_tables(stage.path)
        elif name == "rl":
            tables = rollout_steps(run)
        else:
            continue
        places[name] = [one for path in tables for one in _answers(path, prompts)]
    return {place: found for place, found in places.items() if found}


def _answers(path: Path, prompts: Mapping[str, Prompt]) -> Iterable[Decided]:
    for row in read_table(path, columns=COLUMNS):
        prompt = prompts.get(row["prompt_id"])
        yield Decided(
            prompt_id=row["prompt_id"],
            verifier="unknown" if prompt is None else prompt.verifier,
            step=row["step"],
            outcome=Outcome(
                passed=row["passed"],
                score=row["score"],
                why=row["why"],
                kind=row.get("kind"),
                reward_hack_flags=tuple(row.get("reward_hack_flags") or row.get(_OLD_FLAGS) or ()),
            ),
            text=row["text"],
        )


def _outcomes(verifier: str, places: Mapping[str, Sequence[Decided]]) -> Table:
    """Tabulate kinds of outcomes by place, passed first, then the commonest of all places."""
    counts = {
        place: Counter(one.outcome.label for one in found if one.verifier == verifier)
        for place, found in places.items()
    }
    total = sum(counts.values(), Counter[str]())
    labels = sorted(total, key=lambda label: (label != "passed", -total[label], label))

    def cell(place: str, label: str) -> Cell:
        of_place = counts[place].total()
        share = counts[place][label] / of_place if of_place else None
        return Cell(percent(share), sub=f"{counts[place][label]:,}")

    return Table(
        title=f"Outcomes of verifier {verifier}",
        header=["outcome", *places],
        rows=[
            TableRow(head=label, cells=[cell(place, label) for place in places]) for label in labels
        ],
        foot=[text_row("answers", *(f"{counts[place].total():,}" for place in places))],
        caption="Share and number of answers. Undecided ones are missing, not failed.",
    )


def undecided_answers(answers: Iterable[Decided]) -> Examples | None:
    """Show the commonest reasons of undecided answers, each with its last answer and traceback."""
    counts: Counter[tuple[str, str]] = Counter()
    last: dict[tuple[str, str], Decided] = {}
    for one in answers:
        if one.outcome.passed is None:
            reason = one.outcome.why.partition("\n")[0].partition(":")[0]
            counts[one.verifier, reason] += 1
            last[one.verifier, reason] = one
    items = [
        Example(
            title=f"{verifier}: {reason}",
            facts=[plural(count, "answer")],
            passages=[
                Passage("the last one's reason", last[verifier, reason].outcome.why),
                Passage("its answer", last[verifier, reason].text),
            ],
            badge="undecided",
        )
        for (verifier, reason), count in counts.most_common(NUM_UNDECIDED)
    ]
    title = f"Undecided answers, {counts.total():,} in all, by reason"
    return Examples(title, items=items) if items else None


def _means(run: Run) -> Facts | None:
    """Name the sandbox that ran programs and the calibration of the answer judge."""
    items: list[tuple[str, str]] = []
    for stage in run.stages:
        if (path := run.file(stage, SANDBOX)) is not None:
            items.append(("sandbox", str(read_json(path)["sandbox"])))
        if (path := run.file(stage, ANSWER_JUDGE)) is not None:
            told = read_json(path)
            said = f"passes from {told['threshold']:.2f}"
            if "auc" in told:
                said += f", AUC {told['auc']:.2f} ({told['auc_low']:.2f} to {told['auc_high']:.2f})"
                said += f", false passes {percent(told['false_pass_rate'])}"
            items.append(("answer judge", said))
    return Facts("Sandbox and answer judge", items=list(dict.fromkeys(items))) if items else None


def reward_hack_blocks(rollouts: Sequence[Decided]) -> list[Block]:
    """Show reward-hack flags: their share by step, and a line for each that rose suddenly."""
    kinds = sorted(
        {(one.verifier, kind) for one in rollouts for kind in one.outcome.reward_hack_flags}
    )
    if not kinds:
        said = "No rollout matches a reward-hack pattern of its verifier." if rollouts else ""
        return [Note(said)] if said else []
    panels: list[Panel] = []
    rows: list[TableRow] = []
    risen: list[str] = []
    for verifier, kind in kinds:
        own = [one for one in rollouts if one.verifier == verifier]
        by_step: dict[int, list[bool]] = {}
        for one in own:
            by_step.setdefault(one.step, []).append(kind in one.outcome.reward_hack_flags)
        points = [(float(s), sum(hit) / len(hit)) for s, hit in sorted(by_step.items())]
        told = f"{verifier}: {kind}"
        svg = curves({kind: (RL_COLOUR, points)}, share=True, label=f"Share of answers, {told}")
        panels.append(Panel(told, svg=svg))
        flagged = [one for one in own if kind in one.outcome.reward_hack_flags]
        passed = sum(one.outcome.passed is True for one in flagged)
        share = percent(len(flagged) / len(own))
        rows.append(text_row(told, f"{len(flagged):,}", share, f"{passed:,}"))
        if (step := sudden_rise(by_step)) is not None:
            risen.append(f"{told} rises at step {step}")
    blocks: list[Block] = [
        Table(
            title="Answers that match a reward-hack pattern",
            header=["verifier: pattern", "answers", "share", "of these passed"],
            rows=rows,
            caption="Honest answers may match a pattern, too. Look at shares that rise and at "
            "flagged answers that pass.",
        ),
        Figure(title="Flagged answers by step", panels=panels[:6], more=panels[6:]),
    ]
    if risen:
        blocks.append(Note(f"Sudden rises: {'; '.join(risen)}. Read some of these answers."))
    return blocks


def sudden_rise(by_step: Mapping[int, Sequence[bool]]) -> int | None:
    """Return the first step from which a share is significantly above that of all earlier steps.

    Windows of a tenth of the steps, at least one, against everything before them; Fisher's exact
    test, one-sided, at 0.001 over the number of windows.
    """
    steps = sorted(by_step)
    width = max(1, len(steps) // 10)
    starts = range(width, len(steps), width)
    for start in starts:
        before = [hit for step in steps[:start] for hit in by_step[step]]
        window = [hit for step in steps[start : start + width] for hit in by_step[step]]
        p_value = rise_p_value(sum(window), len(window), sum(before), len(before))
        if p_value < _SIGNIFICANT / len(starts):
            return steps[start]
    return None


def spot_checks(rollouts: Sequence[Decided], prompts: Mapping[str, Prompt]) -> Examples | None:
    """List the only successes of their groups, flagged ones first, then the newest."""
    groups: dict[tuple[int, str], list[Decided]] = {}
    for one in rollouts:
        groups.setdefault((one.step, one.prompt_id), []).append(one)
    rare: list[tuple[Decided, int]] = []
    for group in groups.values():
        passed = [one for one in group if one.outcome.passed]
        if len(group) >= MIN_GROUP and len(passed) == 1:
            rare.append((passed[0], len(group)))
    if not rare:
        return None
    rare.sort(
        key=lambda pair: (not pair[0].outcome.reward_hack_flags, -pair[0].step, pair[0].prompt_id)
    )
    items = [_to_check(one, size, prompts) for one, size in rare[:NUM_SPOT_CHECKS]]
    return Examples(f"Spot checks: rare successes, {len(rare):,} in all", items=items)


def _to_check(one: Decided, size: int, prompts: Mapping[str, Prompt]) -> Example:
    asked = conversation(prompts[one.prompt_id].messages) if one.prompt_id in prompts else []
    facts = [one.verifier, f"step {one.step}", f"the only one of {size} that passed"]
    return Example(
        title=one.prompt_id,
        facts=[*facts, *(f"flagged: {kind}" for kind in one.outcome.reward_hack_flags)],
        passages=[
            *asked,
            Passage(f"passed: {one.outcome.why}", one.text, tone="passed"),
        ],
        badge="passed",
    )


def _shaping(run: Run) -> Figure | None:
    path = run.file("rl", METRICS)
    rows: list[dict[str, Any]] = [] if path is None else read_metrics(path)
    panels = [
        curve_panel(label, found, share=False, colour=RL_COLOUR)
        for name, label in _LABELS.items()
        if (found := series(rows, f"shaping/{name}"))
    ]
    if not panels:
        return None
    return Figure(
        title="Shaping of passed answers",
        panels=panels,
        caption="Mean over passed answers of groups with signal. Failed answers get none, and it "
        "never decides whether a group has signal.",
    )
