"""Prompts, groups and curricula for the tests of curricula."""

from collections import Counter

from posttrain.curriculum import Adaptive
from posttrain.recipe.curricula import AdaptiveCurriculum
from posttrain.records import Outcome, Prompt, Rollout, RolloutGroup


def prompt(number, capability="math", level=None):
    return Prompt.make(
        messages=[{"role": "user", "content": f"{capability} {level} {number}"}],
        reference="1",
        verifier="exact",
        capability=capability,
        level=level,
    )


def pool(**sizes):
    return [prompt(i, capability) for capability, size in sizes.items() for i in range(size)]


def group(prompt_id, passes, step=0):
    rollouts = tuple(
        Rollout(
            completion_ids=[1],
            logprobs=[-1.0],
            text="",
            finish_reason="stop",
            outcome=Outcome(passed=p, score=float(bool(p)), why=""),
        )
        for p in passes
    )
    return RolloutGroup(prompt_id=prompt_id, step=step, policy_version=step, rollouts=rollouts)


def counted(prompt_id, num_passed, num=8, step=0):
    return group(prompt_id, [i < num_passed for i in range(num)], step)


def ids(curriculum, num_prompts, *, num_generations=8, **where):
    proposals = curriculum.propose(num_prompts, num_generations=num_generations, **where)
    return [proposal.prompt_id for proposal in proposals]


def adaptive(prompts, *, seed=0, tags=None, **keys):
    return Adaptive(AdaptiveCurriculum(kind="adaptive", **keys), prompts, seed=seed, tags=tags)


def by_capability(prompts, prompt_ids):
    capability = {p.prompt_id: p.capability for p in prompts}
    return Counter(capability[i] for i in prompt_ids)
