"""Prompts of which nothing is known but their stratum: interchangeable, so a count is enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from posttrain.curriculum.pool import Indices, Mask
from posttrain.curriculum.posterior import Ints


class Untried:
    """Each stratum's untried prompts in a random order that is drawn once."""

    def __init__(self, strata_P: Ints, *, rng: np.random.Generator) -> None:
        self.stratum_P = strata_P.astype(np.int32)
        self.is_untried_P = np.ones(len(strata_P), dtype=np.bool_)
        self._ticket_P = rng.random(len(strata_P), dtype=np.float32)
        self._line_up()

    @property
    def num_S(self) -> Ints:
        """(S,) how many each stratum has left."""
        return self._num_S

    def grow(self, strata: Ints, *, rng: np.random.Generator) -> None:
        """Add new prompts, each at a random place of its stratum's order."""
        self.stratum_P = np.append(self.stratum_P, strata.astype(np.int32))
        self.is_untried_P = np.append(self.is_untried_P, np.ones(len(strata), dtype=np.bool_))
        self._ticket_P = np.append(self._ticket_P, rng.random(len(strata), dtype=np.float32))
        self._line_up()

    def remove(self, indices: Indices) -> None:
        """These are known from now on; each once."""
        fresh = indices[self.is_untried_P[indices]]
        self.is_untried_P[fresh] = False
        np.subtract.at(self._num_S, self.stratum_P[fresh], 1)

    def first(self, stratum: int, num: int, taken_P: Mask) -> Indices:
        """The next `num` of a stratum that are not taken; fewer where it has fewer."""
        start, end = int(self._cursor_S[stratum]), int(self._end_S[stratum])
        found = np.zeros(0, dtype=np.int64)
        at, width = start, 2 * num + 64
        while at < end and len(found) < num:
            part = self._line[at : min(at + width, end)]
            untried = self.is_untried_P[part]
            if at == start and not untried.any():
                # Nobody here will ever be untried again.
                start = min(at + width, end)
                self._cursor_S[stratum] = start
            found = np.append(found, part[untried & ~taken_P[part]])
            at, width = at + width, 2 * width if at > start else width
        return found[:num]

    def _line_up(self) -> None:
        self._line = np.lexsort((self._ticket_P, self.stratum_P)).astype(np.int32)
        num = int(self.stratum_P.max(initial=-1)) + 1
        sizes = np.bincount(self.stratum_P, minlength=num)
        self.size_S = sizes
        self._num_S = np.bincount(self.stratum_P[self.is_untried_P], minlength=num)
        self._end_S = np.cumsum(sizes)
        self._cursor_S = self._end_S - sizes

    def state_dict(self) -> dict[str, Any]:
        """Who is untried, and the order."""
        return {"ticket": self._ticket_P.copy(), "untried": np.packbits(self.is_untried_P)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        num = len(self.stratum_P)
        self._ticket_P = np.array(state["ticket"], dtype=np.float32)
        self.is_untried_P = np.unpackbits(state["untried"], count=num).astype(np.bool_)
        self._line_up()
