"""From the reference answer's likelihood to a pass rate: a map that must earn its weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.curriculum.isotonic import isotonic
from posttrain.curriculum.posterior import Floats, Ints, log_predictive

_MIN_PAIRS = 24
_NUM_BINS = 12
_MAX_STRENGTH = 32.0
# Few groups say little: until there are more, only a clear loss turns the probe off.
_SURE_NATS = 5.0


class LikelihoodMap:
    """Per capability a monotone map from log-likelihood to a Beta belief, refitted as groups come.

    From the last `memory` pairs of a log-likelihood and the group that followed: pass rates of
    quantile bins, made monotone, interpolated between. The strength kappa comes by the method of
    moments, as a stratum's does: what variance is left within prompts after the map has spoken.
    Its weight is its share of the predictive evidence: w = 1 / (1 + exp(-d)), d the discounted sum
    of nats by which its predictions beat those made without it. Once it is tested and has lost, or
    where no prompt asked about had an answer to score, no more likelihoods are asked for.
    """

    def __init__(self, num_capabilities: int, *, memory: int, evidence_kept: float) -> None:
        self._memory = memory
        self._kept = evidence_kept
        self._logprob = [np.zeros(0) for _ in range(num_capabilities)]
        self._num_passed = [np.zeros(0, dtype=np.int64) for _ in range(num_capabilities)]
        self._num_decided = [np.zeros(0, dtype=np.int64) for _ in range(num_capabilities)]
        self._gain_C = np.zeros(num_capabilities)
        self._num_tested_C = np.zeros(num_capabilities, dtype=np.int64)
        self._num_told_C = np.zeros(num_capabilities, dtype=np.int64)
        self._num_mute_C = np.zeros(num_capabilities, dtype=np.int64)
        self._maps: list[tuple[Floats, Floats, float] | None] = [None] * num_capabilities

    @property
    def weight_C(self) -> Floats:
        """(C,) in [0, 1]: how far each capability's map is believed; 0 until it can be fitted."""
        fitted = np.array([m is not None for m in self._maps])
        weight = 1.0 / (1.0 + np.exp(-np.clip(self._gain_C, -30.0, 30.0)))
        return np.where(fitted, weight, 0.0)

    def is_useful(self, capability: int) -> bool:
        """Whether more likelihoods are worth their price: still unknown, or better than without."""
        if self._num_mute_C[capability] >= _MIN_PAIRS and not self._num_told_C[capability]:
            return False
        lost = -_SURE_NATS if self._num_tested_C[capability] < 8 * _MIN_PAIRS else 0.0
        return not self.is_tested(capability) or self._gain_C[capability] > lost

    def is_tested(self, capability: int) -> bool:
        """Whether enough groups followed a prediction to tell."""
        return bool(self._num_tested_C[capability] >= 2 * _MIN_PAIRS)

    def beliefs(self, capability: int, logprobs: Floats) -> tuple[Floats, Floats]:
        """Means and strengths that the map alone gives; NaN where it has none yet."""
        fitted = self._maps[capability]
        if fitted is None:
            return np.full(len(logprobs), np.nan), np.full(len(logprobs), np.nan)
        at, rates, strength = fitted
        return np.interp(logprobs, at, rates), np.full(len(logprobs), strength)

    def asked(self, num_told_C: Ints, num_mute_C: Ints) -> None:
        """Of so many prompts there was a likelihood, of so many there is none to be had."""
        self._num_told_C += num_told_C
        self._num_mute_C += num_mute_C

    def observe(
        self,
        capability: int,
        logprobs: Floats,
        num_passed: Ints,
        num_decided: Ints,
        prior: tuple[Floats, Floats],
        evidence: tuple[Floats, Floats],
    ) -> None:
        """Learn from visits.

        `prior` is alpha and beta without the map, `evidence` what the prompts' own rollouts had
        shown: the map is held against the prior, each with the same evidence.
        """
        if not len(logprobs):
            return
        fitted = self._maps[capability]
        if fitted is not None:
            mean, strength = self.beliefs(capability, logprobs)
            passed, failed = evidence
            ours = log_predictive(
                mean * strength + passed, (1 - mean) * strength + failed, num_passed, num_decided
            )
            theirs = log_predictive(prior[0] + passed, prior[1] + failed, num_passed, num_decided)
            gain = float(np.sum(ours - theirs))
            self._gain_C[capability] = self._kept * self._gain_C[capability] + gain
            self._num_tested_C[capability] += len(logprobs)
        kept = slice(-self._memory, None)
        c = capability
        self._logprob[c] = np.append(self._logprob[c], logprobs)[kept]
        self._num_passed[c] = np.append(self._num_passed[c], num_passed)[kept]
        self._num_decided[c] = np.append(self._num_decided[c], num_decided)[kept]
        self._maps[c] = _fit(self._logprob[c], self._num_passed[c], self._num_decided[c])

    def state_dict(self) -> dict[str, Any]:
        """The pairs and the evidence."""
        return {
            "logprob": list(self._logprob),
            "num_passed": list(self._num_passed),
            "num_decided": list(self._num_decided),
            "gain": self._gain_C.copy(),
            "num_tested": self._num_tested_C.copy(),
            "num_told": self._num_told_C.copy(),
            "num_mute": self._num_mute_C.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._logprob = [np.array(values) for values in state["logprob"]]
        self._num_passed = [np.array(values) for values in state["num_passed"]]
        self._num_decided = [np.array(values) for values in state["num_decided"]]
        self._gain_C = np.array(state["gain"])
        self._num_tested_C = np.array(state["num_tested"])
        self._num_told_C = np.array(state["num_told"])
        self._num_mute_C = np.array(state["num_mute"])
        pairs: Sequence[tuple[Floats, Ints, Ints]] = list(
            zip(self._logprob, self._num_passed, self._num_decided, strict=True)
        )
        self._maps = [_fit(*three) for three in pairs]


def checked_logprob(prompt_id: str, value: float) -> float:
    """`value` where it is a log-probability, else ValueError."""
    if math.isnan(value) or value > 1e-6:
        raise ValueError(
            f"likelihood of prompt {prompt_id}: {value} is no log-probability; did the engine "
            "score the reference answer?"
        )
    return max(value, -1e4)


def _fit(
    logprob: Floats, num_passed: Ints, num_decided: Ints
) -> tuple[Floats, Floats, float] | None:
    if len(logprob) < _MIN_PAIRS:
        return None
    order = np.lexsort((num_decided, num_passed, logprob))
    parts = np.array_split(order, min(_NUM_BINS, len(order) // 8))
    at = np.array([logprob[part].mean() for part in parts])
    num = np.array([float(num_decided[part].sum()) for part in parts])
    passed = np.array([float(num_passed[part].sum()) for part in parts])
    mean = passed.sum() / num.sum()
    rates = np.clip(isotonic((passed + mean) / (num + 1.0), num), 1e-3, 1.0 - 1e-3)
    predicted = np.interp(logprob, at, rates)
    several = num_decided > 1
    n, c = num_decided[several].astype(float), num_passed[several].astype(float)
    inner = np.sum(c * (n - c) / (n * (n - 1.0)))
    possible = np.sum(predicted[several] * (1.0 - predicted[several]))
    ratio = np.clip((inner + 0.1) / (possible + 0.2), 0.01, _MAX_STRENGTH / (1 + _MAX_STRENGTH))
    return at, rates, float(ratio / (1.0 - ratio))
