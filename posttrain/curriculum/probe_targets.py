"""Which prompts' likelihoods to ask for next."""

from __future__ import annotations

import numpy as np

from posttrain.curriculum.pool import Indices
from posttrain.curriculum.scoring import Scoring
from posttrain.curriculum.selection import top


def prompts_to_probe(num_prompts: int, scoring: Scoring, *, probe_memory: float) -> list[int]:
    """Untried prompts by their stratum's score, and a quarter to refresh.

    Places are shared by the capabilities in which the likelihood tells something.
    """
    beliefs, pool = scoring.beliefs, scoring.pool
    mute_P, untried = beliefs.evidence.mute_P, beliefs.untried
    taken_P = (pool.capability_P < 0) | mute_P
    useful = [c for c in range(len(pool.capabilities)) if beliefs.likelihoods.is_useful(c)]
    # A stratum that is mute throughout must not keep others out.
    mute = untried.stratum_P[mute_P & untried.is_untried_P]
    free_S = untried.num_S - np.bincount(mute, minlength=len(untried.num_S))
    chosen: list[int] = []
    for n, c in enumerate(useful):
        places = num_prompts // len(useful) + (n < num_prompts % len(useful))
        stale = _stalest(scoring, c, places // 4, before=beliefs.step - probe_memory / 2)
        fresh = scoring.untried(c, places - len(stale), taken_P, num_S=free_S)
        chosen += [*stale.tolist(), *(i for i, _ in fresh)]
    return chosen


def _stalest(scoring: Scoring, capability: int, num: int, *, before: float) -> Indices:
    """Prompts whose likelihood is oldest, of those that are neither solved nor waiting."""
    beliefs, pool = scoring.beliefs, scoring.pool
    evidence = beliefs.evidence
    index = evidence.known[pool.capability_P[evidence.known] == capability]
    index = index[~evidence.solved_P[index] & (evidence.due_P[index] <= beliefs.step)]
    index = index[(evidence.probed_P[index] < before) & ~np.isnan(evidence.logprob_P[index])]
    ages = -evidence.probed_P[index].astype(np.float64)
    return index[top(ages, num, pool.rng.random(len(index)))].astype(np.int64)
