"""One run of the simulated bed: an arm on a pool with a seed, its costs and held-out pass@1."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from benchmarks.curriculum_rows import Trace
from benchmarks.curriculum_simulated.learner import Floats, Group, Learner
from benchmarks.curriculum_simulated.pools import NUM_SKILLS, PoolSpec, SimPool, draw_pool
from posttrain.curriculum import (
    Curriculum,
    CurriculumSpec,
    Proposal,
    Uniform,
    UniformSpec,
    build_curriculum,
)
from posttrain.curriculum.arrays import Mask
from posttrain.curriculum.pool import Choice
from posttrain.records import Outcome, Prompt, Rollout, RolloutGroup

BATCH, GROUP_SIZE = 32, 8
PROMPT_TOKENS, ANSWER_TOKENS = 60, 10
_DECODED_PER_SECOND, _SCORED_PER_SECOND, _TRAINED_PER_SECOND = 5_000.0, 100_000.0, 20_000.0
_SECONDS_PER_STEP, _TOKENS_PER_SECOND_OF_ONE = 2.0, 60.0


@dataclass(kw_only=True, slots=True)
class Spent:
    """Costs so far."""

    tokens: int = 0
    rollouts: int = 0
    steps: int = 0
    seconds: float = 0.0
    """Seconds by a model of the hardware, not by a clock."""
    scored_tokens: int = 0


class Simulation:
    """A learner with its engine and verifier."""

    def __init__(self, spec: PoolSpec, seed: int) -> None:
        self.spec = spec
        self.pool: SimPool = draw_pool(spec, seed)
        self.rng = np.random.default_rng([seed, 2])
        self.learner = Learner(
            ability=np.zeros(NUM_SKILLS),
            skill_P=self.pool.skill_P,
            difficulty_P=self.pool.difficulty_P,
            rates=spec.rates,
            rng=np.random.default_rng([seed, 3]),
        )
        self.index = {p.prompt_id: i for i, p in enumerate(self.pool.prompts)}
        self.spent = Spent()
        self.purposes: Counter[str] = Counter()

    def held_out(self) -> float:
        """Return exact pass@1, averaged over skills."""
        return self.learner.held_out(self.pool.held_out_TH)

    def roll_out(self, prompts: Sequence[int], numbers: Sequence[int]) -> list[Group]:
        """Generate `numbers` rollouts of each prompt in one batch, and charge them."""
        index = np.array(prompts, dtype=np.int64)
        p_N = self.learner.pass_rates(index)
        # The harder for the policy, the longer: 60 tokens where it is solved, 180 where it is lost.
        mean_N = 60.0 + 120.0 * (1.0 - p_N)
        groups: list[Group] = []
        longest = total = 0
        for i, p, mean, num in zip(prompts, p_N, mean_N, numbers, strict=True):
            outcomes = self.rng.random(num) < p
            rewards = outcomes
            if self.spec.random_reward:
                rewards = self.rng.random(num) < 0.5
            elif self.spec.flips:
                rewards = outcomes ^ (self.rng.random(num) < self.spec.flips)
            lengths = mean * self.rng.lognormal(-0.08, 0.4, num)
            longest, total = max(longest, lengths.max(initial=0)), total + int(lengths.sum())
            self._tokens_of[i] = self._tokens_of.get(i, 0) + int(lengths.sum())
            groups.append(Group(prompt=i, outcomes=outcomes, rewards=rewards))
        self.spent.tokens += total
        self.spent.rollouts += sum(numbers)
        self.spent.seconds += max(longest / _TOKENS_PER_SECOND_OF_ONE, total / _DECODED_PER_SECOND)
        return groups

    def score(self, prompts: Sequence[int]) -> Floats:
        """Return log-likelihoods of reference answers, (N,), and charge them as scored tokens."""
        self.spent.scored_tokens += len(prompts) * (PROMPT_TOKENS + ANSWER_TOKENS)
        self.spent.seconds += len(prompts) * (PROMPT_TOKENS + ANSWER_TOKENS) / _SCORED_PER_SECOND
        noise = self.rng.standard_normal(len(prompts))
        if self.spec.probe_noise is None:
            return np.minimum(-60.0 + 8.0 * noise, 0.0)
        p_N = self.learner.pass_rates(np.array(prompts, dtype=np.int64))
        return np.minimum(np.log(p_N) + self.spec.probe_noise * noise - 0.3, 0.0)

    def step(self, curriculum: Curriculum, spec: CurriculumSpec) -> None:
        """Take one RL step as the RL stage does: score, propose, pilot, continue, refill, learn."""
        self._tokens_of: dict[int, int] = {}
        self._score(curriculum)
        number = self.spent.steps
        num_first = math.ceil(spec.oversample * BATCH)
        proposals = curriculum.propose(num_first, num_generations=GROUP_SIZE)
        wanted = Counter(p.capability for p in proposals)
        share = {c: n * BATCH / num_first for c, n in wanted.items()}
        groups: list[Group] = []
        rollouts_before = self.spent.rollouts
        for refill in range(spec.max_refills + 1):
            groups += self._generate(curriculum, proposals, number)
            used = self.spent.rollouts - rollouts_before
            if refill == spec.max_refills or used >= spec.max_rollouts * BATCH * GROUP_SIZE:
                break
            if sum(g.spread > 0 for g in groups) >= spec.refill_below * BATCH:
                break
            seen = {self.pool.prompts[g.prompt].prompt_id for g in groups}
            good = Counter(self.pool.prompts[g.prompt].capability for g in groups if g.spread > 0)
            proposals = []
            for capability, part in sorted(share.items()):
                short = math.ceil(part) - good[capability]
                if short > 0:
                    proposals += curriculum.propose(
                        short, num_generations=GROUP_SIZE, exclude=seen, capability=capability
                    )
            if not proposals:
                break
        self._train(groups)

    def _generate(
        self, curriculum: Curriculum, proposals: Sequence[Proposal], step: int
    ) -> list[Group]:
        index = [self.index[p.prompt_id] for p in proposals]
        first = self.roll_out(index, [p.num_pilot or GROUP_SIZE for p in proposals])
        go_on = [
            n
            for n, (proposal, group) in enumerate(zip(proposals, first, strict=True))
            if len(group.rewards) < GROUP_SIZE
            and curriculum.continues(
                proposal.prompt_id,
                num_passed=int(group.rewards.sum()),
                num_decided=len(group.rewards),
            )
        ]
        if go_on:
            rest = self.roll_out(
                [index[n] for n in go_on], [GROUP_SIZE - len(first[n].rewards) for n in go_on]
            )
            for n, more in zip(go_on, rest, strict=True):
                first[n] = replace(
                    first[n],
                    outcomes=np.append(first[n].outcomes, more.outcomes),
                    rewards=np.append(first[n].rewards, more.rewards),
                )
        for group in first:
            curriculum.observe(_scored(self.pool.prompts[group.prompt].prompt_id, group, step))
        return first

    def _score(self, curriculum: Curriculum) -> None:
        ids = curriculum.prompts_to_score(BATCH)
        if ids:
            values = self.score([self.index[i] for i in ids])
            curriculum.observe_likelihood(
                dict(zip(ids, values.tolist(), strict=True)), step=self.spent.steps
            )

    def _train(self, groups: list[Group]) -> None:
        """Learn from at most a batch of the groups with most spread, and charge the step."""
        useful = sorted((g for g in groups if g.spread > 0), key=lambda g: -g.spread)
        trained = useful[:BATCH]
        self.learner.learn(trained, batch=BATCH, group_size=GROUP_SIZE)
        kept = {id(g) for g in trained}
        for g in groups:
            whole = len(g.rewards) == GROUP_SIZE
            use = "trained" if id(g) in kept else "surplus" if g.spread else "without signal"
            self.purposes[use if whole else "stopped pilot"] += self._tokens_of.get(g.prompt, 0)
        tokens = sum(self._tokens_of.get(g.prompt, 0) for g in trained)
        self.spent.seconds += _SECONDS_PER_STEP + tokens / _TRAINED_PER_SECOND
        self.spent.steps += 1


def simulate(
    curriculum: CurriculumSpec | None,
    pool: PoolSpec,
    *,
    seed: int,
    max_tokens: int | None = None,
    stop_at: float | None = None,
) -> Trace:
    """Train for uniform's number of steps, or until `max_tokens` or twice in a row `stop_at`.

    `curriculum` None is the oracle.
    """
    started = time.perf_counter()
    sim = Simulation(pool, seed)
    spec: CurriculumSpec = curriculum or UniformSpec(kind="uniform")
    chooser: Curriculum = (
        Oracle(sim.pool.prompts, pass_rates=sim.learner.pass_rates, seed=seed)
        if curriculum is None
        else build_curriculum(curriculum, sim.pool.prompts, seed=seed, tags=sim.pool.tags)
    )
    every = max(1, pool.num_steps // 120) if max_tokens is None else 1
    points = [{"held_out": sim.held_out(), **asdict(sim.spent)}]
    reached = 0
    while reached < 2:
        if max_tokens is None and sim.spent.steps >= pool.num_steps:
            break
        if max_tokens is not None and (
            sim.spent.tokens >= max_tokens or sim.spent.steps >= 3 * pool.num_steps
        ):
            break
        sim.step(chooser, spec)
        if sim.spent.steps % every == 0:
            points.append({"held_out": sim.held_out(), **asdict(sim.spent)})
            reached = reached + 1 if stop_at and points[-1]["held_out"] >= stop_at else 0
    return Trace(
        points=points,
        purposes=dict(sim.purposes),
        reliability=chooser.reliability(),
        metrics=chooser.metrics(),
        wall_seconds=time.perf_counter() - started,
    )


PASSED, FAILED = (
    Rollout(
        completion_ids=[],
        logprobs=[],
        text="",
        finish_reason="stop",
        outcome=Outcome(passed=passed, score=float(passed), why=""),
    )
    for passed in (True, False)
)


def _scored(prompt_id: str, group: Group, step: int) -> RolloutGroup:
    return RolloutGroup(
        prompt_id=prompt_id,
        step=step,
        policy_version=step,
        rollouts=tuple(PASSED if r else FAILED for r in group.rewards.tolist()),
    )


class Oracle(Uniform[UniformSpec]):
    """Curriculum that knows all pass rates and takes the prompts with the largest p (1 - p)."""

    def __init__(
        self, prompts: list[Prompt], *, pass_rates: Callable[[], Floats], seed: int
    ) -> None:
        super().__init__(UniformSpec(kind="uniform"), prompts, seed=seed)
        self._pass_rates = pass_rates

    def choose(self, capability: int, num_prompts: int, taken_P: Mask) -> list[Choice]:
        """Choose by the true pass rates."""
        free = self.pool.free(capability, taken_P)
        p = self._pass_rates()[free]
        num = min(num_prompts, len(free))
        chosen = free[np.argsort(-p * (1 - p), kind="stable")[:num]]
        taken_P[chosen] = True
        return [Choice(index=i, reason="selected") for i in chosen.tolist()]
