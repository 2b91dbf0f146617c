"""One step's training batch: propose, generate, verify, observe, replace what teaches nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from posttrain.curriculum import Curriculum
from posttrain.engines import Engine, SamplingRequest
from posttrain.engines.rollouts import roll_out
from posttrain.records import Prompt, RolloutGroup, content_hash
from posttrain.rl.places import EnginePlace

ALONE = EnginePlace(engine=0, num_engines=1, speaks=True)

Use = Literal["trained", "no_signal_solved", "no_signal_failed", "undecided", "filler", "surplus"]
"""What became of a group: trained on; replaced because all passed, all failed or too few could be
decided; trained on without signal because the refill cap bound; with signal but one too many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Everything one step generated, and what of it is trained on."""

    groups: list[RolloutGroup]
    """All groups in the order they were generated."""
    uses: list[Use]
    """Per group."""
    refill_rounds: list[int]
    """Per group: 0 for the first proposal, n for the n-th refill."""

    @property
    def training_groups(self) -> list[RolloutGroup]:
        """The groups the trainer gets, those with signal first."""
        order = {"trained": 0, "filler": 1}
        chosen = [(order[u], g) for g, u in zip(self.groups, self.uses, strict=True) if u in order]
        return [g for _, g in sorted(chosen, key=lambda pair: pair[0])]


def without_signal(group: RolloutGroup) -> Use:
    """Name why a group teaches nothing."""
    if group.num_decided < len(group.rollouts):
        return "undecided"
    return "no_signal_solved" if group.num_passed else "no_signal_failed"


def collect_batch(
    *,
    curriculum: Curriculum,
    prompts: Mapping[str, Prompt],
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    request: SamplingRequest,
    num_groups: int,
    max_refills: int,
    step: int,
    place: EnginePlace = ALONE,
) -> Batch:
    """Generate until `num_groups` groups have signal or `max_refills` refills are used up.

    Never more than asked. The curriculum observes every group. A group without signal is replaced
    by one of the same capability; in the last round, where a capability has none left to offer, by
    any. Every process returns the same batch: each engine generates its share, asked by all of its
    processes alike, and all exchange them. Seeds depend on step, round and engine only, so a
    resumed run repeats the same draws.
    """
    groups: list[RolloutGroup] = []
    rounds: list[int] = []
    proposals = curriculum.propose(num_groups, num_generations=request.num_generations)
    wanted = [proposal.prompt_id for proposal in proposals]
    shares = Counter(prompts[i].capability for i in wanted)
    for refill in range(max_refills + 1):
        seeded = SamplingRequest(
            num_generations=request.num_generations,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=int(content_hash(request.seed, step, refill, place.engine)[:8], 16) >> 1,
        )
        mine = list(enumerate(wanted))[place.engine :: place.num_engines]
        local = (
            roll_out([prompts[i] for _, i in mine], engine, tokenizer, seeded, step=step)
            if mine
            else []
        )
        told = [(n, g) for (n, _), g in zip(mine, local, strict=True)] if place.speaks else []
        numbered = gather_object(told)
        new = [group for _, group in sorted(numbered, key=lambda pair: pair[0])]
        for group in new:
            curriculum.observe(group)
        groups += new
        rounds += [refill] * len(new)
        if refill == max_refills:
            break
        wanted = _replacements(
            groups, curriculum, prompts, shares, num_generations=request.num_generations
        )
        if not wanted:
            break
    return Batch(
        groups=groups, uses=_uses(groups, prompts, num_groups, shares), refill_rounds=rounds
    )


def _replacements(
    groups: Sequence[RolloutGroup],
    curriculum: Curriculum,
    prompts: Mapping[str, Prompt],
    shares: Counter[str],
    *,
    num_generations: int,
) -> list[str]:
    """Prompts to make up, per capability, for the groups that still lack signal."""
    good = Counter(prompts[g.prompt_id].capability for g in groups if g.has_signal)
    seen = {g.prompt_id for g in groups}
    wanted: list[str] = []
    for capability, share in sorted(shares.items()):
        short = share - good[capability]
        if short > 0:
            refill = curriculum.propose(
                short, num_generations=num_generations, exclude=seen, capability=capability
            )
            wanted += [proposal.prompt_id for proposal in refill]
    return wanted


def _uses(
    groups: Sequence[RolloutGroup],
    prompts: Mapping[str, Prompt],
    num_groups: int,
    shares: Counter[str],
) -> list[Use]:
    """Decide per group: signal within the capability's share, then any signal, then filler."""
    uses: list[Use] = ["surplus" if g.has_signal else without_signal(g) for g in groups]
    taken: defaultdict[str, int] = defaultdict(int)
    for i, group in enumerate(groups):
        capability = prompts[group.prompt_id].capability
        if group.has_signal and taken[capability] < shares[capability]:
            uses[i] = "trained"
            taken[capability] += 1
    passes: tuple[tuple[Use | None, Use], ...] = (("surplus", "trained"), (None, "filler"))
    for wanted, becomes in passes:
        for i in range(len(groups)):
            if uses.count("trained") + uses.count("filler") == num_groups:
                return uses
            if uses[i] not in ("trained", "filler") and wanted in (None, uses[i]):
                uses[i] = becomes
    return uses
