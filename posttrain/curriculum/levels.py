"""The level of an endless source: up where it is mastered, down where it is dead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelRule:
    """When a level changes.

    >>> LevelRule(lowest=0, highest=4).rise
    0.8
    """

    lowest: int
    highest: int
    rise: float = 0.8
    """Pass rate from which it rises."""
    fall: float = 0.1
    """Pass rate up to which it falls."""
    min_rollouts: int = 64
    """That count at the level before it may change."""
    memory: float = 256.0
    """Rollouts after which older ones count for a third."""


class LevelController:
    """One family's level; the same rollouts in the same steps give the same levels.

    What happened at another level than the present one says nothing about it and is not counted.
    """

    def __init__(self, rule: LevelRule, *, start: int) -> None:
        if not rule.lowest <= start <= rule.highest:
            raise ValueError(
                f"level {start} is out of range: give one from {rule.lowest} to {rule.highest}"
            )
        if not 0.0 <= rule.fall < rule.rise <= 1.0:
            raise ValueError(f"fall ({rule.fall:g}) must be below rise ({rule.rise:g})")
        self._rule = rule
        self.level = start
        self._num_passed, self._num_decided, self._num_since = 0.0, 0.0, 0
        # Of the step at hand, whole numbers, so that the order of its groups does not matter.
        self._new_passed, self._new_decided = 0, 0

    def observe(self, *, level: int, num_passed: int, num_decided: int) -> None:
        """Count rollouts of a prompt of `level`; ValueError where there is no such level."""
        rule = self._rule
        if not rule.lowest <= level <= rule.highest:
            raise ValueError(
                f"level {level} is out of range: there are {rule.lowest} to {rule.highest}"
            )
        if level == self.level:
            self._new_passed += num_passed
            self._new_decided += num_decided

    def move(self) -> int:
        """Once a step, when all of its groups were observed: -1, 0 or 1, done already."""
        rule = self._rule
        kept = (1.0 - 1.0 / rule.memory) ** self._new_decided
        self._num_passed = kept * self._num_passed + self._new_passed
        self._num_decided = kept * self._num_decided + self._new_decided
        self._num_since += self._new_decided
        self._new_passed = self._new_decided = 0
        if self._num_since < rule.min_rollouts:
            return 0
        rate = self._num_passed / self._num_decided
        change = int(rate >= rule.rise) - int(rate <= rule.fall)
        moved = min(max(self.level + change, rule.lowest), rule.highest)
        if moved == self.level:
            return 0
        self.level = moved
        self._num_passed, self._num_decided, self._num_since = 0.0, 0.0, 0
        return change

    def state_dict(self) -> dict[str, Any]:
        """Level and counts."""
        return {
            "level": self.level,
            "counts": [self._num_passed, self._num_decided],
            "num_since": self._num_since,
            "new": [self._new_passed, self._new_decided],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        rule, level = self._rule, int(state["level"])
        if not rule.lowest <= level <= rule.highest:
            raise ValueError(
                f"the saved level {level} is out of range: there are {rule.lowest} to "
                f"{rule.highest}"
            )
        self.level = level
        self._num_passed, self._num_decided = state["counts"]
        self._num_since = int(state["num_since"])
        self._new_passed, self._new_decided = state["new"]
