"""How fast evidence about one prompt grows old, chosen by what predicts best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from posttrain.curriculum.inbox import Visits
from posttrain.curriculum.posterior import Floats, log_predictive

DISCOUNTS = (0.3, 0.5, 0.7, 0.9, 1.0)
_NUM_FOLLOWED = 4096
_KEPT = 0.995


class DiscountChoice:
    """Keeps the counts of some prompts under every discount at once, and scores each at revisits.

    The score is the discounted sum of one-step predictive log-losses. The first prompts to be
    visited are followed; the choice holds for all.
    """

    def __init__(self, start: float) -> None:
        self._start = start
        self._row_of: dict[int, int] = {}
        self._passed_RD = np.zeros((0, len(DISCOUNTS)))
        self._failed_RD = np.zeros((0, len(DISCOUNTS)))
        self._nats_D = np.zeros(len(DISCOUNTS))
        self._num_revisits = 0

    @property
    def best(self) -> float:
        """The discount with the least loss; the one to start with until 32 revisits have come."""
        if self._num_revisits < 32:
            return self._start
        return DISCOUNTS[int(np.argmin(self._nats_D))]

    def observe(self, visits: Visits, alpha_N: Floats, beta_N: Floats) -> None:
        """Score and update; `alpha_N`, `beta_N` are the priors, without evidence of the prompt."""
        rows: list[int] = []
        at: list[int] = []
        for n, index in enumerate(visits.index_N.tolist()):
            row = self._row_of.get(index)
            if row is None:
                if len(self._row_of) == _NUM_FOLLOWED:
                    continue
                row = self._row_of[index] = len(self._row_of)
            rows.append(row)
            at.append(n)
        new = np.zeros((len(self._row_of) - len(self._passed_RD), len(DISCOUNTS)))
        self._passed_RD = np.concatenate([self._passed_RD, new])
        self._failed_RD = np.concatenate([self._failed_RD, new])
        if not rows:
            return
        passed_M, failed_M = self._passed_RD[rows], self._failed_RD[rows]
        c = visits.num_passed_N[at][:, None]
        n = visits.num_decided_N[at][:, None]
        again = (passed_M + failed_M).sum(axis=1) > 0
        nats = log_predictive(
            alpha_N[at][:, None] + passed_M,
            beta_N[at][:, None] + failed_M,
            np.broadcast_to(c, passed_M.shape),
            np.broadcast_to(n, passed_M.shape),
        )
        self._nats_D = _KEPT * self._nats_D - nats[again].sum(axis=0)
        self._num_revisits += int(again.sum())
        kept_D = np.array(DISCOUNTS)
        self._passed_RD[rows] = kept_D * passed_M + c
        self._failed_RD[rows] = kept_D * failed_M + (n - c)

    def state_dict(self) -> dict[str, Any]:
        """The followed prompts' counts and the losses."""
        return {
            "followed": np.array(list(self._row_of), dtype=np.int64),
            "passed": self._passed_RD.copy(),
            "failed": self._failed_RD.copy(),
            "nats": self._nats_D.copy(),
            "num_revisits": self._num_revisits,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        followed: list[int] = np.asarray(state["followed"]).tolist()
        self._row_of = {index: row for row, index in enumerate(followed)}
        self._passed_RD, self._failed_RD = np.array(state["passed"]), np.array(state["failed"])
        self._nats_D = np.array(state["nats"])
        self._num_revisits = int(state["num_revisits"])
