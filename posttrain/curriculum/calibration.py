"""Whether predicted pass rates come true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from posttrain.curriculum.posterior import Floats, Ints, log_predictive

NUM_BINS = 10


class Calibration:
    """Sums over all predicted groups: reliability by bin, Brier score, log-loss."""

    def __init__(self) -> None:
        self.predicted_B = np.zeros(NUM_BINS)
        self.observed_B = np.zeros(NUM_BINS)
        self.num_B = np.zeros(NUM_BINS)
        self._brier, self._nats, self._num_rollouts = 0.0, 0.0, 0.0

    def observe(self, alpha: Floats, beta: Floats, num_passed: Ints, num_decided: Ints) -> None:
        """Compare beliefs with the rollouts that followed."""
        predicted = alpha / (alpha + beta)
        bins = np.minimum((predicted * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        np.add.at(self.predicted_B, bins, predicted * num_decided)
        np.add.at(self.observed_B, bins, num_passed.astype(float))
        np.add.at(self.num_B, bins, num_decided.astype(float))
        failed = num_decided - num_passed
        self._brier += float(np.sum(num_passed * (1 - predicted) ** 2 + failed * predicted**2))
        self._nats -= float(np.sum(log_predictive(alpha, beta, num_passed, num_decided)))
        self._num_rollouts += float(num_decided.sum())

    def metrics(self) -> dict[str, float]:
        """Brier score, log-loss in nats per rollout, expected calibration error; NaN before any."""
        n = self._num_rollouts
        if not n:
            return dict.fromkeys(("brier", "log_loss", "error"), float("nan"))
        return {
            "brier": self._brier / n,
            "log_loss": self._nats / n,
            "error": float(np.abs(self.predicted_B - self.observed_B).sum() / n),
        }

    def reliability(self) -> list[tuple[float, float, int]]:
        """(mean predicted, observed pass rate, rollouts) of each bin that was used."""
        return [
            (float(p / n), float(o / n), int(n))
            for p, o, n in zip(self.predicted_B, self.observed_B, self.num_B, strict=True)
            if n
        ]

    def state_dict(self) -> dict[str, Any]:
        """All sums."""
        return {
            "predicted": self.predicted_B.copy(),
            "observed": self.observed_B.copy(),
            "num": self.num_B.copy(),
            "sums": [self._brier, self._nats, self._num_rollouts],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.predicted_B = np.array(state["predicted"])
        self.observed_B = np.array(state["observed"])
        self.num_B = np.array(state["num"])
        self._brier, self._nats, self._num_rollouts = state["sums"]
