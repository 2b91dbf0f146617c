"""What is held out: how many prompts of each source, which ones, and the proof of disjointness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from posttrain.data.records import question_hashes
from posttrain.records import Prompt, Sample, content_hash


class _Bundle(Protocol):
    @property
    def samples(self) -> list[Sample]: ...
    @property
    def prompts(self) -> list[Prompt]: ...
    @property
    def suites(self) -> dict[str, list[Prompt]]: ...


def assert_disjoint(bundle: _Bundle) -> None:
    """Raise AssertionError when a question of a suite is also trained on; hashes are taken anew."""
    for name, prompts in bundle.suites.items():
        held = {hashed for prompt in prompts for hashed in question_hashes(prompt)}
        for record in (*bundle.samples, *bundle.prompts):
            if held & question_hashes(record):
                shown = record.messages[-1 if isinstance(record, Prompt) else -2]["content"][:80]
                raise AssertionError(f"suite {name!r} and the training data share: {shown!r}")


def shares(units: Sequence[tuple[str, str]], size: int) -> list[int]:
    """How many prompts each (capability, label) sets aside, so that every capability gets `size`.

    >>> shares([("math", "a"), ("math", "b"), ("logic", "c")], 5)
    [3, 2, 5]
    """
    given: list[int] = []
    for index, (capability, _) in enumerate(units):
        alike = [i for i, (other, _) in enumerate(units) if other == capability]
        given.append(size // len(alike) + (alike.index(index) < size % len(alike)))
    return given


def choose(prompts: Mapping[str, Prompt], size: int, *, seed: int) -> list[str]:
    """The ids of `size` prompts, by the hash of seed and id: no order of the rows changes which."""
    return sorted(prompts, key=lambda prompt_id: content_hash(seed, "heldout", prompt_id))[:size]
