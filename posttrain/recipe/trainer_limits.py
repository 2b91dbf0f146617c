"""Values of the `trainer` blocks that TRL's types allow and training would fail on, or not heed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from posttrain.recipe.problems import nearest, show


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Which numbers a key may have."""

    least: float | None = None
    above: float | None = None
    most: float | None = None

    def complaint(self, number: float) -> str | None:
        """What is wrong with a number, or None."""
        if self.least is not None and number < self.least:
            return f"must be at least {self.least:g}, is {show(number)}"
        if self.above is not None and number <= self.above:
            return f"must be above {self.above:g}, is {show(number)}"
        if self.most is not None and number > self.most:
            return f"must be at most {self.most:g}, is {show(number)}"
        return None


RANGES: Mapping[str, Range] = {
    "per_device_train_batch_size": Range(least=1),
    "gradient_accumulation_steps": Range(least=1),
    "learning_rate": Range(least=0),
    "dataloader_num_workers": Range(least=0),
    "max_length": Range(least=2),
    "max_completion_length": Range(least=1),
    "temperature": Range(above=0),
    "top_p": Range(above=0, most=1),
}
"""Of every stage that has the key; not numbers, such as null, are left to their types."""

LOSS_TYPES: Mapping[str, tuple[str, ...]] = {
    "sft": ("nll", "dft", "chunked_nll"),
    "rl": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
    "dpo": (
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard",
        "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
    ),
}  # fmt: skip
"""What TRL knows, which it says of SFT and DPO at their start and of RL at the first loss only."""

WITHOUT_BETA = ("sft",)
"""Losses of DPO that beta does not enter."""


def value_faults(stage: str, block: Mapping[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    """Key, message and suggestion of every value of the right type that would not train."""
    for key, value in block.items():
        limits = RANGES.get(key)
        if limits and isinstance(value, int | float) and (said := limits.complaint(value)):
            yield key, said, None
    if (steps := block.get("max_steps", -1)) == 0 or steps < -1:
        yield "max_steps", f"must be at least 1, or -1 for num_train_epochs, is {steps}", None
    if block.get("save_strategy") == "best":
        message = "the trainer measures nothing to be best at: write steps, epoch or no"
        yield "save_strategy", message, None
    yield from _loss_faults(stage, block)


def _loss_faults(stage: str, block: Mapping[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    given = block.get("loss_type", [])
    losses = cast("list[str]", given if isinstance(given, list) else [given])
    known = LOSS_TYPES[stage]
    for loss in losses:
        if loss not in known:
            message = f"expected one of {', '.join(known)}, found {show(loss)}"
            yield "loss_type", message, nearest(loss, known)
    if "loss_type" in block and not losses:
        yield "loss_type", f"names no loss: give one or more of {', '.join(known)}", None
    beta = block.get("beta")
    if stage == "dpo" and isinstance(beta, int | float):
        without = bool(losses) and all(loss in WITHOUT_BETA for loss in losses)
        if beta < 0 or (beta == 0 and not without):
            why = "" if beta < 0 else ": with 0 nothing would be learned"
            yield "beta", f"must be above 0, is {show(beta)}{why}", None
