"""Answers to read: held-out questions before and after training, early and late rollouts of RL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from posttrain.metrics import pass_rates
from posttrain.records import Prompt, Rollout, RolloutGroup, with_system
from posttrain.report.blocks import (
    Block,
    Example,
    Examples,
    Note,
    Passage,
    Section,
    conversation,
    number,
    percent,
)
from posttrain.report.read import Evaluated, Run, rollout_steps
from posttrain.tables import read_groups

NUM_FILES = 3
NUM_CHANGED = 2
Badge = Literal["passed", "failed", "undecided"]


def section(run: Run, evaluated: Sequence[Evaluated], prompts: Mapping[str, Prompt]) -> Section:
    """Return the section of answers to read."""
    blocks: list[Block] = []
    for suite in evaluated[:1]:
        blocks.extend(before_and_after(suite, prompts))
    steps = rollout_steps(run)
    if steps:
        early = [g for path in steps[:NUM_FILES] for g in read_groups(path)]
        late = [g for path in steps[-NUM_FILES:][::-1] for g in read_groups(path)]
        blocks.extend(early_and_late(early, late, prompts))
    else:
        blocks.append(
            Note(
                "There are no RL rollouts to read: the RL stage has not finished, or the "
                "recipe has none."
            )
        )
    return Section(slug="answers", title="Answers to read", blocks=blocks)


def before_and_after(suite: Evaluated, prompts: Mapping[str, Prompt]) -> list[Block]:
    """List held-out prompts whose pass rate rose and fell most, from first to last stage."""
    there = [point for point, groups in suite.groups.items() if groups]
    if len(there) < 2:
        return []
    first, last = there[0], there[-1]
    old, new = pass_rates(suite.groups[first]), pass_rates(suite.groups[last])
    change = {i: new[i] - old[i] for i in old if i in new and i in prompts}
    groups = {point: {g.prompt_id: g for g in suite.groups[point]} for point in (first, last)}
    ends = (first, last)
    risen, fallen = list[Example](), list[Example]()
    for name in sorted({prompts[i].capability for i in change}):
        ids = sorted(
            (i for i in change if prompts[i].capability == name), key=lambda i: (-change[i], i)
        )
        risen += [
            _before_and_after(prompts[i], groups, ends, (old[i], new[i]))
            for i in ids[:NUM_CHANGED]
            if change[i] > 0
        ]
        fallen += [
            _before_and_after(prompts[i], groups, ends, (old[i], new[i]))
            for i in ids[-1:]
            if change[i] < 0
        ]
    return [
        Examples(title, items=items, open=items is risen)
        for title, items in (
            (f"Held-out questions that {last} answers better than {first}", risen),
            (f"Held-out questions that {last} answers worse than {first}", fallen),
        )
        if items
    ]


def _before_and_after(
    prompt: Prompt,
    groups: Mapping[str, Mapping[str, RolloutGroup]],
    ends: tuple[str, str],
    rates: tuple[float, float],
) -> Example:
    (first, last), (old, new) = ends, rates
    before, after = (groups[point][prompt.prompt_id] for point in ends)
    # One answer per side, of the kind that became rarer or more frequent.
    passages = [
        *conversation(prompt.messages),
        Passage("reference", prompt.reference),
        _answer(_typical(before, new < old), first),
        _answer(_typical(after, new > old), last),
    ]
    facts = [prompt.capability, *([f"level {prompt.level}"] if prompt.level else [])]
    facts.append(f"{first} passed {percent(old, 0)}, {last} {percent(new, 0)}")
    return Example(title=prompt.prompt_id, facts=facts, passages=passages)


def _typical(group: RolloutGroup, wanted: bool) -> Rollout:
    return next((r for r in group.rollouts if r.outcome.passed is wanted), group.rollouts[0])


def early_and_late(
    early: Sequence[RolloutGroup], late: Sequence[RolloutGroup], prompts: Mapping[str, Prompt]
) -> list[Block]:
    """List passed, failed and undecided rollouts by capability, from early and late steps."""
    blocks: list[Block] = []
    for title, groups in (
        ("Rollouts from the first RL steps", early),
        ("Rollouts from the last RL steps", late),
    ):
        items: list[Example] = []
        seen: set[tuple[str, bool | None]] = set()
        for group in groups:
            prompt = prompts.get(group.prompt_id)
            for index, rollout in enumerate(group.rollouts):
                key = (prompt.capability if prompt else "unknown", rollout.outcome.passed)
                if key not in seen:
                    seen.add(key)
                    items.append(_rollout(group, index, rollout, prompt))
        items.sort(key=lambda e: (e.facts[0], e.badge != "passed"))
        if items:
            blocks.append(Examples(title, items=items))
    return blocks


def _rollout(group: RolloutGroup, index: int, rollout: Rollout, prompt: Prompt | None) -> Example:
    decided = f"{number(group.num_passed)} of {number(group.num_decided)} passed in its group"
    facts = [
        prompt.capability if prompt else "unknown",
        f"step {group.step}",
        f"policy version {group.policy_version}",
        f"answer {index + 1} of {len(group.rollouts)}, {decided}",
        f"{len(rollout.completion_ids):,} tokens, "
        f"{'cut off' if rollout.finish_reason == 'length' else 'ended by itself'}",
    ]
    passages = [] if prompt is None else conversation(with_system(prompt.messages, group.system))
    if prompt is not None:
        passages.append(Passage("reference", prompt.reference))
    passages.append(_answer(rollout, "answer"))
    return Example(title=group.prompt_id, facts=facts, passages=passages, badge=badge(rollout))


def _answer(rollout: Rollout, name: str) -> Passage:
    # An exception has its traceback below the first line.
    why = rollout.outcome.why.partition("\n")[0]
    return Passage(
        f"{name}: {badge(rollout)}, {why}",
        rollout.text,
        tone=badge(rollout),
    )


def badge(rollout: Rollout) -> Badge:
    """Return the outcome as a word."""
    return {True: "passed", False: "failed", None: "undecided"}[rollout.outcome.passed]  # type: ignore[return-value]
