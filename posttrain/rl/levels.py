"""Endless sources in the RL stage: prompts of the level that fits the policy, made as it learns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from posttrain.data import LEVELLED, LevelledFamily, new_prompts
from posttrain.recipe.rows import Levels
from posttrain.records import Prompt, RolloutGroup

FamilyLevel = tuple[str, int]
"""A family's label and a level."""
_MEMORY = 256.0
"""Rollouts at a level after which older ones count for a third."""


class LevelController:
    """One family's level: up when mastered, down when no rollout passes.

    Rollouts at another level than the present one say nothing about it and are not counted. The
    same rollouts in the same steps give the same levels.
    """

    def __init__(self, levels: Levels, highest: int) -> None:
        self._levels, self._highest = levels, highest
        self.level = levels.start
        self._num_passed, self._num_decided, self._num_since = 0.0, 0.0, 0
        # This step's counts, whole numbers, so that the order of its groups does not matter.
        self._new_passed, self._new_decided = 0, 0

    def observe(self, *, level: int, num_passed: int, num_decided: int) -> None:
        """Count rollouts of a prompt of `level`."""
        if level == self.level:
            self._new_passed += num_passed
            self._new_decided += num_decided

    def move(self) -> int:
        """Change the level if its time has come; return the change, -1, 0 or 1.

        Called once a step, when all of its groups were observed.
        """
        levels = self._levels
        kept = (1.0 - 1.0 / _MEMORY) ** self._new_decided
        self._num_passed = kept * self._num_passed + self._new_passed
        self._num_decided = kept * self._num_decided + self._new_decided
        self._num_since += self._new_decided
        self._new_passed = self._new_decided = 0
        if self._num_since < levels.min_rollouts:
            return 0
        rate = self._num_passed / self._num_decided
        change = int(rate >= levels.rise) - int(rate <= levels.fall)
        moved = min(max(self.level + change, levels.min), self._highest)
        if moved == self.level:
            return 0
        self.level = moved
        self._num_passed, self._num_decided, self._num_since = 0.0, 0.0, 0
        return change

    def state_dict(self) -> dict[str, Any]:
        """Return level and counts."""
        return {
            "level": self.level,
            "counts": [self._num_passed, self._num_decided],
            "num_since": self._num_since,
            "new": [self._new_passed, self._new_decided],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.level = int(state["level"])
        self._num_passed, self._num_decided = state["counts"]
        self._num_since = int(state["num_since"])
        self._new_passed, self._new_decided = state["new"]


class LevelledPrompts:
    """Keeps enough untried prompts of every family's present level; levels follow the rollouts.

    New prompts depend on the seed, the levels and those made before, so a resumed run makes the
    same.
    """

    def __init__(
        self,
        families: Sequence[LevelledFamily],
        prompts: Iterable[Prompt],
        *,
        held_out: frozenset[str],
        seed: int,
    ) -> None:
        self._families = {family.label: family for family in families}
        self._held_out = held_out
        self._seed = seed
        self._controllers = {
            family.label: LevelController(family.levels, family.highest) for family in families
        }
        self._known: set[str] = set()
        self._num_made: Counter[FamilyLevel] = Counter()
        self._tried: dict[FamilyLevel, set[str]] = {}
        self._num_drawn: Counter[FamilyLevel] = Counter()
        self._exhausted: set[FamilyLevel] = set()
        self.note(prompts)

    def note(self, prompts: Iterable[Prompt]) -> None:
        """Count prompts that are in the pool, whoever made them."""
        for prompt in prompts:
            self._known.add(prompt.prompt_id)
            if place := _family_level(prompt):
                self._num_made[place] += 1

    def new(self, num_untried: int) -> list[Prompt]:
        """Return prompts to add to the pool, so that each family's level has `num_untried` left.

        They come `size` at a time; fewer only if a level has no more.
        """
        found: list[Prompt] = []
        for label, family in self._families.items():
            place = (label, self._controllers[label].level)
            num = max(num_untried, family.source.size or 0)
            untried = self._num_made[place] - len(self._tried.get(place, ()))
            if untried >= num_untried or place in self._exhausted:
                continue
            made, self._num_drawn[place] = new_prompts(
                family,
                place[1],
                num=num,
                seed=self._seed,
                start=self._num_drawn[place],
                known=self._known,
                held=self._held_out,
            )
            if len(made) < num:
                self._exhausted.add(place)
            self.note(made)
            found += made
        return found

    def observe(self, groups: Iterable[RolloutGroup], prompts: Mapping[str, Prompt]) -> None:
        """Count all groups of a step, then let the levels move."""
        for group in groups:
            if place := _family_level(prompts[group.prompt_id]):
                self._tried.setdefault(place, set()).add(group.prompt_id)
                self._controllers[place[0]].observe(
                    level=place[1], num_passed=group.num_passed, num_decided=group.num_decided
                )
        for controller in self._controllers.values():
            controller.move()

    def metrics(self) -> dict[str, float]:
        """Return every family's level; under its whole label if two sources have the family."""
        names = Counter(_short(label) for label in self._controllers)
        return {
            f"levels/{_short(label) if names[_short(label)] == 1 else label}": float(one.level)
            for label, one in self._controllers.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return levels, and how far each stream was read; the prompts have tables of their own."""
        return {
            "controllers": {k: c.state_dict() for k, c in self._controllers.items()},
            "drawn": [[*place, num] for place, num in sorted(self._num_drawn.items())],
            "tried": [[*place, sorted(ids)] for place, ids in sorted(self._tried.items())],
            "exhausted": [list(place) for place in sorted(self._exhausted)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; prompts made before must have been noted."""
        for label, controller in self._controllers.items():
            controller.load_state_dict(state["controllers"][label])
        self._num_drawn = Counter({(label, level): num for label, level, num in state["drawn"]})
        self._tried = {(label, level): set(ids) for label, level, ids in state["tried"]}
        self._exhausted = {(label, level) for label, level in state["exhausted"]}


def _short(label: str) -> str:
    return label.rpartition(":")[2]


def _family_level(prompt: Prompt) -> FamilyLevel | None:
    """Return which family and level a prompt came from; None if its level does not move."""
    label = prompt.meta.get(LEVELLED)
    return None if label is None else (label, int(prompt.meta["level"]))
