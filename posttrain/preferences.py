"""Mine preference pairs from RL rollouts: one that passes and one that fails the same prompt."""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from posttrain.progress import note
from posttrain.recipe.schema import Pairs
from posttrain.records import (
    Outcome,
    PreferencePair,
    Prompt,
    Rollout,
    RolloutGroup,
    with_system,
)
from posttrain.rewards import UserFunction, submit_group
from posttrain.rewards.detectors import detect


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """A rollout and its origin."""

    rollout: Rollout
    step: int
    policy_version: int
    index: int
    system: str | None


def mine_pairs(
    groups: Iterable[RolloutGroup], prompts: Mapping[str, Prompt], spec: Pairs, *, seed: int
) -> list[PreferencePair]:
    """Return pairs of passing and failing completions of a prompt, newest first.

    Chosen ones passed and ended by themselves; undecided ones are never used. The longer of the two
    has at most `max_length_ratio` times the other's tokens (an empty one counts as one token); both
    answered under the same system instruction, which the pair's prompt holds. A prompt's pairs have
    different rejected texts; within a step they take turns among the corner cases, the rarest
    first. `seed` breaks ties. Raises ValueError where a prompt is unknown. Detectors of the user's
    own have been declared with `use_functions`.
    """
    groups = list(groups)
    if spec.last_steps is not None and groups:
        newest = max(group.step for group in groups)
        groups = [group for group in groups if group.step > newest - spec.last_steps]
    by_prompt: dict[str, list[RolloutGroup]] = {}
    for group in groups:
        if group.prompt_id not in prompts:
            raise ValueError(f"prompt {group.prompt_id} of step {group.step} is not in the data")
        by_prompt.setdefault(group.prompt_id, []).append(group)

    own_cases = _own_cases([g for gs in by_prompt.values() for g in gs], prompts, spec)
    candidates: list[tuple[int, float, PreferencePair]] = []
    for prompt_id, of_prompt in sorted(by_prompt.items()):
        # One generator per prompt: what is mined from it does not depend on the other prompts.
        rng = random.Random(f"{seed} {prompt_id}")
        # Nor on the order in which its groups were read.
        of_prompt.sort(key=_reading_order)
        for pair in _pairs_of(prompts[prompt_id], of_prompt, own_cases, spec, rng):
            age = -max(pair.origin["chosen_step"], pair.origin["rejected_step"])
            candidates.append((age, rng.random(), pair))
    candidates.sort(key=lambda candidate: candidate[:2])
    return [pair for _, _, pair in candidates[: spec.max_pairs]]


def _reading_order(group: RolloutGroup) -> tuple[Any, ...]:
    return (
        group.step,
        group.policy_version,
        [(r.text, r.completion_ids, r.finish_reason, r.outcome.why) for r in group.rollouts],
    )


def pair_summary(pairs: Sequence[PreferencePair]) -> dict[str, int]:
    """Count pairs by corner case, the commonest first."""
    return dict(Counter(pair.corner_case for pair in pairs).most_common())


def corner_case(rollout: Rollout, prompt: Prompt) -> str:
    """Name what a failed completion did wrong: the first of these that holds.

    What `rewards.detectors.detect` finds, in its order; a text cut off while it repeats itself is
    repetition, not truncation, as that is the cause. Then `format`, if the verifier could not read
    the answer or the last line holds the reference among other words; else `wrong_answer`.
    `prompt` is the prompt as it was asked.
    """
    truncated = rollout.finish_reason == "length"
    found = detect(prompt, rollout.text, truncated=truncated)
    if found:
        return found[0]
    if rollout.outcome.kind == "no_answer" or _stands_within(prompt.reference, rollout.text):
        return "format"
    return "wrong_answer"


def _own_cases(
    groups: Sequence[RolloutGroup], prompts: Mapping[str, Prompt], spec: Pairs
) -> dict[int, str]:
    """Return the first of the user's own detectors that holds, by `id` of the failed rollout.

    A detector that cannot decide finds nothing; a note gives the number of such answers.
    """
    found: dict[int, str] = {}
    for detector in (case for case in spec.corner_cases if isinstance(case, UserFunction)):
        asked: list[tuple[Rollout, Future[Outcome]]] = []
        for group in groups:
            failed = [r for r in group.rollouts if r.outcome.passed is False]
            prompt = _as_asked(prompts[group.prompt_id], group, verifier=detector.name)
            outcomes = submit_group(prompt, [(rollout.text, False) for rollout in failed])
            asked += zip(failed, outcomes, strict=True)
        undecided: list[str] = []
        for rollout, future in asked:
            outcome = future.result()
            if outcome.passed is None:
                undecided.append(outcome.why)
            elif outcome.passed:
                found.setdefault(id(rollout), detector.bare_name)
        if undecided:
            note(
                f"detector {detector.name} could not decide {len(undecided)} of {len(asked)} "
                f"answers; the first: {undecided[0]}"
            )
    return found


def _as_asked(prompt: Prompt, group: RolloutGroup, **changes: Any) -> Prompt:
    """Return the prompt under the group's system instruction."""
    messages = with_system(prompt.messages, group.system)
    return dataclasses.replace(prompt, messages=messages, **changes)


def _pairs_of(
    prompt: Prompt,
    groups: Sequence[RolloutGroup],
    own_cases: Mapping[int, str],
    spec: Pairs,
    rng: random.Random,
) -> Iterator[PreferencePair]:
    """Yield at most `max_pairs_per_prompt` pairs of one prompt's completions."""
    wanted = {case if isinstance(case, str) else case.bare_name for case in spec.corner_cases}
    chosen: list[_Seen] = []
    rejected: list[tuple[str, _Seen]] = []
    for group in groups:
        asked = _as_asked(prompt, group)
        for index, rollout in enumerate(group.rollouts):
            seen = _Seen(
                rollout=rollout,
                step=group.step,
                policy_version=group.policy_version,
                index=index,
                system=group.system,
            )
            if rollout.outcome.passed is True:
                if rollout.finish_reason == "stop" and rollout.text.strip():
                    chosen.append(seen)
            elif rollout.outcome.passed is False:
                case = own_cases.get(id(rollout)) or corner_case(rollout, asked)
                if case in wanted:
                    rejected.append((case, seen))
    rng.shuffle(chosen)
    rng.shuffle(rejected)
    chosen.sort(key=lambda seen: -seen.step)

    used_texts: set[str] = set()
    num_pairs = 0
    for case, bad in _newest_in_turn(rejected):
        if num_pairs == spec.max_pairs_per_prompt:
            return
        if bad.rollout.text in used_texts:
            continue
        good = next((g for g in chosen if _fits(g, bad, spec.max_length_ratio)), None)
        if good is None:
            continue
        # A completion that was used goes to the end: others come first, but few passes suffice.
        chosen.remove(good)
        chosen.append(good)
        used_texts.add(bad.rollout.text)
        num_pairs += 1
        yield _pair(prompt, good, bad, case)


def _newest_in_turn(rejected: Sequence[tuple[str, _Seen]]) -> list[tuple[str, _Seen]]:
    """Sort by step, newest first; within a step take turns among corner cases, rarest first."""
    rarity = Counter(case for case, _ in rejected)
    turns: Counter[tuple[int, str]] = Counter()
    order: list[tuple[int, int, int, str]] = []
    for case, seen in rejected:
        order.append((-seen.step, turns[seen.step, case], rarity[case], case))
        turns[seen.step, case] += 1
    ranked = sorted(zip(order, rejected, strict=True), key=lambda entry: entry[0])
    return [entry for _, entry in ranked]


def _fits(good: _Seen, bad: _Seen, max_length_ratio: float) -> bool:
    lengths = [max(1, len(one.rollout.completion_ids)) for one in (good, bad)]
    different = good.rollout.text != bad.rollout.text
    alike_asked = good.system == bad.system
    return different and alike_asked and max(lengths) <= max_length_ratio * min(lengths)


def _pair(prompt: Prompt, good: _Seen, bad: _Seen, case: str) -> PreferencePair:
    return PreferencePair(
        prompt_id=prompt.prompt_id,
        prompt=with_system(prompt.messages, good.system),
        chosen=good.rollout.text,
        rejected=bad.rollout.text,
        corner_case=case,
        origin={
            "chosen_step": good.step,
            "chosen_policy_version": good.policy_version,
            "chosen_index": good.index,
            "rejected_step": bad.step,
            "rejected_policy_version": bad.policy_version,
            "rejected_index": bad.index,
            "rejected_why": bad.rollout.outcome.why,
        },
    )


def _stands_within(reference: str, text: str) -> bool:
    """Return whether the last line of `text` holds the reference as whole words among others."""
    reference, text = reference.strip().casefold(), text.strip().casefold()
    if not reference or reference == text:
        return False
    last_line = text.splitlines()[-1]
    return re.search(rf"(?<![\w.]){re.escape(reference)}(?!\w|\.\d)", last_line) is not None
