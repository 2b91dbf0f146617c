"""Endless sources in the RL stage: new prompts of the level that fits the policy now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from posttrain.curriculum.levels import LevelController, LevelRule
from posttrain.data import LEVELLED, LevelledFamily, new_prompts
from posttrain.records import Prompt, RolloutGroup

Place = tuple[str, int]
"""A family's label and a level."""


class LevelledPrompts:
    """Keeps untried prompts of every family's present level at hand; levels follow the rollouts.

    What it makes depends on the seed, the levels and what was made before, so a resumed run makes
    the same.
    """

    def __init__(
        self,
        families: Sequence[LevelledFamily],
        prompts: Iterable[Prompt],
        *,
        held: frozenset[str],
        seed: int,
    ) -> None:
        self._families = {family.label: family for family in families}
        self._held = held
        self._seed = seed
        self._controllers = {
            family.label: LevelController(_rule(family), start=family.levels.start)
            for family in families
        }
        self._known: set[str] = set()
        self._num_made: Counter[Place] = Counter()
        self._tried: dict[Place, set[str]] = {}
        self._num_drawn: Counter[Place] = Counter()
        self._exhausted: set[Place] = set()
        self.note(prompts)

    def note(self, prompts: Iterable[Prompt]) -> None:
        """Count prompts that are in the pool, whoever made them."""
        for prompt in prompts:
            self._known.add(prompt.prompt_id)
            if place := _place(prompt):
                self._num_made[place] += 1

    def new(self, num_at_hand: int) -> list[Prompt]:
        """Prompts to put into the pool, so that each family's level has `num_at_hand` untried ones.

        They come `size` at a time; fewer only where a level has no more.
        """
        found: list[Prompt] = []
        for label, family in self._families.items():
            place = (label, self._controllers[label].level)
            num = max(num_at_hand, family.source.size or 0)
            untried = self._num_made[place] - len(self._tried.get(place, ()))
            if untried >= num_at_hand or place in self._exhausted:
                continue
            made, self._num_drawn[place] = new_prompts(
                family,
                place[1],
                num=num,
                seed=self._seed,
                start=self._num_drawn[place],
                known=self._known,
                held=self._held,
            )
            if len(made) < num:
                self._exhausted.add(place)
            self.note(made)
            found += made
        return found

    def observe(self, groups: Iterable[RolloutGroup], prompts: Mapping[str, Prompt]) -> None:
        """Count a step's groups, all of them, and let the levels move."""
        for group in groups:
            if place := _place(prompts[group.prompt_id]):
                self._tried.setdefault(place, set()).add(group.prompt_id)
                self._controllers[place[0]].observe(
                    level=place[1], num_passed=group.num_passed, num_decided=group.num_decided
                )
        for controller in self._controllers.values():
            controller.move()

    def metrics(self) -> dict[str, float]:
        """Every family's level; under its whole label where two sources have the family."""
        names = Counter(_short(label) for label in self._controllers)
        return {
            f"levels/{_short(label) if names[_short(label)] == 1 else label}": float(one.level)
            for label, one in self._controllers.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Levels, and how far each stream was read; the prompts made are in tables of their own."""
        return {
            "controllers": {k: c.state_dict() for k, c in self._controllers.items()},
            "drawn": [[*place, num] for place, num in sorted(self._num_drawn.items())],
            "tried": [[*place, sorted(ids)] for place, ids in sorted(self._tried.items())],
            "exhausted": [list(place) for place in sorted(self._exhausted)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; what was made before must have been noted."""
        for label, controller in self._controllers.items():
            controller.load_state_dict(state["controllers"][label])
        self._num_drawn = Counter({(label, level): num for label, level, num in state["drawn"]})
        self._tried = {(label, level): set(ids) for label, level, ids in state["tried"]}
        self._exhausted = {(label, level) for label, level in state["exhausted"]}


def _short(label: str) -> str:
    return label.rpartition(":")[2]


def _rule(family: LevelledFamily) -> LevelRule:
    levels = family.levels
    return LevelRule(
        lowest=levels.min,
        highest=levels.max,
        rise=levels.rise,
        fall=levels.fall,
        min_rollouts=levels.min_rollouts,
    )


def _place(prompt: Prompt) -> Place | None:
    """Where a prompt came from; None for one without a level that moves."""
    label = prompt.meta.get(LEVELLED)
    return None if label is None else (label, int(prompt.meta["level"]))
