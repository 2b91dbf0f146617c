"""From which score a judged answer passes: the cut that best divides answers of known quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.errors import RecipeError
from posttrain.judge.auc import auc, auc_interval
from posttrain.records import Message
from posttrain.tables import read_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """An answer of known quality."""

    messages: list[Message]
    answer: str
    good: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """A threshold and how far the judge can be trusted with it.

    >>> calibrate([0.1, 0.2, 0.8, 0.9], [False, False, True, True]).threshold
    0.5
    """

    threshold: float
    """An answer passes from this score on."""
    auc: float
    """Probability that a good answer scores above a bad one, ties counting half."""
    auc_low: float
    """Lower end of its 95 % interval."""
    auc_high: float
    false_pass_rate: float
    """Share of bad answers that pass."""
    false_fail_rate: float
    """Share of good answers that fail."""
    num_good: int
    num_bad: int
    num_unscored: int = 0
    """Answers that the judge had no score for; they are in no other figure."""

    def as_json(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)


def calibrate(
    scores_N: Sequence[float | None], good_N: Sequence[bool], *, seed: int = 0
) -> Calibration:
    """The threshold with the highest Youden's J: true-pass rate minus false-pass rate.

    Of equal ones the highest, as a false pass is what a policy learns to exploit. It lies half-way
    between two observed scores. Raises ValueError where there is not at least one scored answer of
    each kind.
    """
    scored = [(s, g) for s, g in zip(scores_N, good_N, strict=True) if s is not None]
    good = np.array([s for s, g in scored if g], dtype=np.float64)
    bad = np.array([s for s, g in scored if not g], dtype=np.float64)
    if not len(good) or not len(bad):
        raise ValueError(f"scored {len(good)} good and {len(bad)} bad answers: both are needed")
    levels = np.unique(np.concatenate([good, bad]))
    cuts = (levels[1:] + levels[:-1]) / 2
    if levels[-1] < 1.0 or not len(cuts):
        # Above all scores nothing passes; where the top is 1 no cut lies above it.
        cuts = np.append(cuts, min(1.0, levels[-1] + 1e-6))
    youden = np.array([np.mean(good >= c) - np.mean(bad >= c) for c in cuts])
    threshold = float(cuts[np.flatnonzero(youden >= youden.max() - 1e-12)[-1]])
    auc_low, auc_high = auc_interval(good, bad, seed=seed)
    return Calibration(
        threshold=threshold,
        auc=auc(good, bad),
        auc_low=auc_low,
        auc_high=auc_high,
        false_pass_rate=float(np.mean(bad >= threshold)),
        false_fail_rate=float(np.mean(good < threshold)),
        num_good=len(good),
        num_bad=len(bad),
        num_unscored=len(scores_N) - len(scored),
    )


def read_labelled(path: Path) -> list[Labelled]:
    """Rows of a JSONL or Parquet file with `question` or `messages`, `answer`, and `good`.

    Raises RecipeError that names the row and the column.
    """
    rows = read_table(path)
    return [_labelled(path, number, row) for number, row in enumerate(rows, 1)]


def _labelled(path: Path, number: int, row: dict[str, Any]) -> Labelled:
    def wrong(what: str) -> RecipeError:
        return RecipeError(
            f"{path.name}, row {number}: {what}",
            hint='write rows like {"question": "...", "answer": "...", "good": true}',
        )

    question, turns = row.get("question"), row.get("messages")
    if isinstance(question, str) and question.strip():
        messages = [Message(role="user", content=question)]
    elif isinstance(turns, list) and turns:
        messages = [Message(role=str(t["role"]), content=str(t["content"])) for t in turns]
    else:
        raise wrong("no text in question and no turns in messages")
    answer, good = row.get("answer"), row.get("good")
    if not isinstance(answer, str):
        raise wrong("answer is no text")
    if not isinstance(good, bool):
        raise wrong("good is neither true nor false")
    return Labelled(messages=messages, answer=answer, good=good)
