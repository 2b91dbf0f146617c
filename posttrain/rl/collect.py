"""One step's training batch: propose, pilot, continue, observe, refill; and whether to go on."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from posttrain.curriculum import Curriculum, Proposal
from posttrain.errors import HealthStop
from posttrain.progress import note
from posttrain.records import RolloutGroup
from posttrain.rl.sampling import Sampling, draw_groups, joined

Use = Literal[
    "trained", "filler", "surplus", "stopped", "no_signal_solved", "no_signal_failed", "undecided"
]
"""Use of a group: trained on; trained on without signal to fill the batch; left over
though it had signal; stopped after its pilot; replaced because all passed, all failed or too few
could be decided."""
USES: tuple[Use, ...] = get_args(Use)

MAX_UNDECIDED = 0.05
"""Share of a step's rollouts without a verdict above which the run stops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Everything one step generated, and what of it is trained on."""

    num_generations: int
    groups: list[RolloutGroup]
    """All groups in the order they were proposed; stopped ones hold their pilot only."""
    proposals: list[Proposal]
    """Per group."""
    uses: list[Use]
    """Per group."""
    refill_rounds: list[int]
    """Per group: 0 for the first proposal, n for the n-th refill."""
    is_capped: bool
    """True if too few groups had signal when refills ended, by a cap or for want of prompts."""

    @property
    def training_groups(self) -> list[RolloutGroup]:
        """Return the groups the trainer gets, those with signal first, all of `num_generations`.

        A pilot that fills a place is repeated up to that size. Without signal its advantages are
        zero; with signal, though it was stopped because others promised more, its first rollouts
        count once more than its last, which is better than no signal in that place.
        """
        order = {"trained": 0, "filler": 1}
        chosen = [(order[u], g) for g, u in zip(self.groups, self.uses, strict=True) if u in order]
        chosen.sort(key=lambda pair: pair[0])
        return [_repeated(group, self.num_generations) for _, group in chosen]

    @property
    def outcome_counts(self) -> str:
        """Describe the groups without signal by their outcomes."""
        solved = sum(g.num_passed == g.num_decided > 0 for g in self.groups)
        failed = sum(g.num_passed == 0 < g.num_decided for g in self.groups)
        undecided = sum(g.num_decided == 0 for g in self.groups)
        words = f"{solved} all passed, {failed} all failed"
        return words + (f", {undecided} undecided" if undecided else "")


def collect_batch(
    curriculum: Curriculum,
    sampling: Sampling,
    *,
    num_groups: int,
    max_refills: int,
    refill_below: float = 1.0,
    max_rollouts: float = math.inf,
    oversample: float = 1.0,
) -> Batch:
    """Generate until `num_groups` groups have signal, or a cap binds.

    The caps are soft: at most `max_refills` refills, none begun once `refill_below` of the places
    have signal or a step has `max_rollouts` batches of rollouts; then the best groups so far fill
    up. At first `oversample` prompts are drawn per place. The curriculum observes every group,
    stopped pilots too. A group without signal is replaced by one of the same capability; if none
    came, the place goes to the best group of any capability. Every process returns the same batch.
    """
    groups: list[RolloutGroup] = []
    proposals: list[Proposal] = []
    rounds: list[int] = []
    whole = sampling.request.num_generations
    wanted = curriculum.propose(math.ceil(oversample * num_groups), num_generations=whole)
    shares = _shares(wanted, num_groups)
    has_enough = False
    for refill in range(max_refills + 1):
        groups += _generate_round(wanted, curriculum, sampling, refill)
        proposals += wanted
        rounds += [refill] * len(wanted)
        num_rollouts = sum(len(group.rollouts) for group in groups)
        has_enough = sum(group.has_signal for group in groups) >= refill_below * num_groups
        is_spent = num_rollouts >= max_rollouts * num_groups * whole
        if refill == max_refills or has_enough or is_spent:
            break
        wanted = _replacements(groups, proposals, curriculum, shares, whole)
        if not wanted:
            break
    return Batch(
        num_generations=whole,
        groups=groups,
        proposals=proposals,
        uses=_uses(groups, proposals, num_groups, shares, whole),
        refill_rounds=rounds,
        is_capped=max_refills > 0 and not has_enough,
    )


def warn_no_signal(batch: Batch, step: int, *, steps_without_signal: int) -> None:
    """Say once, at its first step, that no group has signal; the tables hold every step."""
    if steps_without_signal == 1:
        note(
            f"rl: step {step}: none of {len(batch.groups)} groups had signal "
            f"({batch.outcome_counts}); trained on the best of them"
        )


def check_health(
    batch: Batch, step: int, *, num_groups: int, steps_without_signal: int, most: int
) -> None:
    """Raise HealthStop: batch too small or undecided, or no signal for `most` steps."""
    outcomes = [r.outcome for g in batch.groups for r in g.rollouts]
    undecided = [o for o in outcomes if o.passed is None]
    if len(undecided) > MAX_UNDECIDED * len(outcomes):
        raise HealthStop(
            f"rl: verifiers could not decide {len(undecided)} of {len(outcomes)} answers "
            f"at step {step}; the first: {undecided[0].why}",
            hint="check the verifier and references of rl.data",
        )
    if steps_without_signal >= most:
        raise HealthStop(
            f"rl: no group had signal for {steps_without_signal} steps, up to step {step} "
            f"({batch.outcome_counts} at the last)",
            hint="give rl.data harder prompts if all pass, easier ones or a longer SFT if all "
            "fail; the curriculum's max_steps_without_signal says how long to go on",
        )
    if len(batch.training_groups) < num_groups:
        raise HealthStop(
            f"rl: the curriculum had {len(batch.groups)} prompts left for a batch of {num_groups}",
            hint="give rl.data more rows, or lower the batch (per_device_train_batch_size x "
            "gradient_accumulation_steps / num_generations)",
        )


def _shares(proposals: Sequence[Proposal], num_groups: int) -> Counter[str]:
    """Return places per capability in the proposals' proportions, by largest remainders."""
    asked = Counter(proposal.capability for proposal in proposals)
    num_groups = min(num_groups, len(proposals))
    exact = {c: num * num_groups / len(proposals) for c, num in sorted(asked.items())}
    shares = Counter({c: math.floor(share) for c, share in exact.items()})
    for c in sorted(exact, key=lambda c: shares[c] - exact[c])[: num_groups - shares.total()]:
        shares[c] += 1
    return shares


def _generate_round(
    proposals: Sequence[Proposal], curriculum: Curriculum, sampling: Sampling, refill: int
) -> list[RolloutGroup]:
    """Draw every proposal's pilot, and the rest of the groups that the curriculum continues."""
    whole = sampling.request.num_generations
    first = [(p.prompt_id, min(p.num_pilot or whole, whole)) for p in proposals]
    groups = draw_groups(first, sampling, stream=f"round {refill}")
    continued = [
        n
        for n, group in enumerate(groups)
        if len(group.rollouts) < whole
        and group.num_decided
        and curriculum.continues(
            group.prompt_id, num_passed=group.num_passed, num_decided=group.num_decided
        )
    ]
    missing = [(groups[n].prompt_id, whole - len(groups[n].rollouts)) for n in continued]
    rests = draw_groups(missing, sampling, stream=f"rest of round {refill}")
    for n, rest in zip(continued, rests, strict=True):
        groups[n] = joined([groups[n], rest])
    for group in groups:
        curriculum.observe(group)
    return groups


def _replacements(
    groups: Sequence[RolloutGroup],
    proposals: Sequence[Proposal],
    curriculum: Curriculum,
    shares: Counter[str],
    whole: int,
) -> list[Proposal]:
    """Propose prompts, per capability, for the places that still lack signal."""
    mixed = Counter(p.capability for g, p in zip(groups, proposals, strict=True) if g.has_signal)
    seen = {p.prompt_id for p in proposals}
    wanted: list[Proposal] = []
    for capability, share in sorted(shares.items()):
        short = share - mixed[capability]
        if short > 0:
            wanted += curriculum.propose(
                short, num_generations=whole, exclude=seen, capability=capability
            )
    return wanted


def _uses(
    groups: Sequence[RolloutGroup],
    proposals: Sequence[Proposal],
    num_groups: int,
    shares: Counter[str],
    whole: int,
) -> list[Use]:
    """Decide per group: signal within the capability's share, then any signal, then fillers.

    The largest variance of outcomes comes first, and whole groups before pilots: even a pilot that
    was stopped in spite of its signal is better than none.
    """
    is_whole = [len(group.rollouts) == whole for group in groups]
    uses: list[Use] = [
        ("surplus" if g.has_signal else _without_signal(g)) if is_whole[i] else "stopped"
        for i, g in enumerate(groups)
    ]
    order = sorted(
        range(len(groups)),
        key=lambda i: (not groups[i].has_signal, not is_whole[i], -_variance(groups[i])),
    )
    taken: defaultdict[str, int] = defaultdict(int)
    for i in order:
        capability = proposals[i].capability
        if uses[i] == "surplus" and taken[capability] < shares[capability]:
            uses[i] = "trained"
            taken[capability] += 1
    left = [i for i in order if uses[i] != "trained"]
    for i in left[: num_groups - uses.count("trained")]:
        uses[i] = "trained" if groups[i].has_signal else "filler"
    return uses


def _without_signal(group: RolloutGroup) -> Use:
    """Name why a whole group has no signal."""
    if group.num_decided < len(group.rollouts):
        return "undecided"
    return "no_signal_solved" if group.num_passed else "no_signal_failed"


def _variance(group: RolloutGroup) -> float:
    """Return the variance of a group's binary outcomes; 0 if none was decided."""
    rate = group.num_passed / max(group.num_decided, 1)
    return rate * (1.0 - rate)


def _repeated(group: RolloutGroup, size: int) -> RolloutGroup:
    rollouts = tuple(itertools.islice(itertools.cycle(group.rollouts), size))
    return dataclasses.replace(group, rollouts=rollouts)
