"""The score from which a judged answer passes, found on answers of known quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.errors import RecipeError
from posttrain.records import Message
from posttrain.tables import read_table

Floats = npt.NDArray[np.float64]

_NUM_BOOTSTRAPS = 1_000
_TAIL = 0.025


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledAnswer:
    """An answer of known quality."""

    messages: list[Message]
    answer: str
    good: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """A threshold, and how well the judge separates good from bad answers.

    >>> calibrate([0.1, 0.2, 0.8, 0.9], [False, False, True, True]).threshold
    0.5
    """

    threshold: float
    """Lowest passing score."""
    auc: float
    """Probability that a good answer scores above a bad one, ties counting half."""
    auc_low: float
    """Lower end of the AUC's 95 % interval."""
    auc_high: float
    false_pass_rate: float
    """Share of bad answers that pass."""
    false_fail_rate: float
    """Share of good answers that fail."""
    num_good: int
    num_bad: int
    num_unscored: int = 0
    """Number of answers without a score, which are in no other figure."""


def calibrate(
    scores_N: Sequence[float | None], good_N: Sequence[bool], *, seed: int = 0
) -> Calibration:
    """Find the threshold with the highest Youden's J, true-pass rate minus false-pass rate.

    Of equal ones the highest is taken, because a policy learns to exploit false passes. It lies
    half-way between two observed scores. Raises ValueError without at least one scored answer of
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


def read_labelled(path: Path) -> list[LabelledAnswer]:
    """Read a JSONL or Parquet file with `question` or `messages`, `answer` and `good`.

    Raises RecipeError that names the row and the column.
    """
    rows = read_table(path)
    return [_labelled(path, number, row) for number, row in enumerate(rows, 1)]


def _labelled(path: Path, number: int, row: dict[str, Any]) -> LabelledAnswer:
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
    return LabelledAnswer(messages=messages, answer=answer, good=good)


def auc(good: Floats, bad: Floats) -> float:
    """Return the probability that a good answer scores above a bad one, ties counting half.

    This is Mann and Whitney's U over the number of pairs.
    """
    from scipy.stats import rankdata

    ranks_of_good = rankdata(np.concatenate([good, bad]))[: len(good)]
    u = ranks_of_good.sum() - len(good) * (len(good) + 1) / 2
    return float(u / (len(good) * len(bad)))


def auc_interval(good: Floats, bad: Floats, *, seed: int = 0) -> tuple[float, float]:
    """Return both ends of the AUC's 95 % interval, each the wider of two estimates.

    The percentile bootstrap, over good and bad answers separately, knows how scores spread, but is
    certain where scores separate the two (nearly) cleanly. `score_end` is not, but knows only the
    number of answers.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = [
        auc(rng.choice(good, len(good)), rng.choice(bad, len(bad))) for _ in range(_NUM_BOOTSTRAPS)
    ]
    low, high = np.quantile(drawn, [_TAIL, 1.0 - _TAIL])
    found, counts = auc(good, bad), (len(good), len(bad))
    return (
        min(float(low), score_end(found, *counts)),
        max(float(high), 1.0 - score_end(1.0 - found, *counts)),
    )


def score_end(found: float, num_good: int, num_bad: int) -> float:
    """Return the smallest AUC that `found` does not exceed significantly, at 2.5 %.

    Newcombe (2006, Statistics in Medicine 25, method 5): the normal test with the variance that
    Hanley and McNeil (1982) give the AUC under test, here with half a step of U, 1 / (2 m n), for
    continuity. At one half the variance is Mann and Whitney's own.
    """
    z = NormalDist().inv_cdf(1.0 - _TAIL)
    num_pairs, mean_count = num_good * num_bad, (num_good + num_bad) / 2.0

    def is_far_below(a: float) -> bool:
        spread = 1.0 + (mean_count - 1.0) * ((1.0 - a) / (2.0 - a) + a / (1.0 + a))
        error = math.sqrt(a * (1.0 - a) / num_pairs * spread)
        return found - a - 0.5 / num_pairs > z * error

    low, high = 0.0, found
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (middle, high) if is_far_below(middle) else (low, middle)
    return low
