"""Verifier `reasoning_gym`: the score of the family that made the question.

Both making and scoring run in a worker process: some families `eval` what they score, some hang
on hostile answers, and some make other questions under another string hash seed, which the worker
fixes. Some scorers are lax: game_of_life_halting takes any text that is not "True" for "False".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from posttrain.records import Outcome, Prompt
from posttrain.rewards.answers import expected_got, final_answer, tidy
from posttrain.rewards.workers import WorkerFailure, ask

WALL_LIMIT = 5.0
"""Seconds for one score."""
_GENERATION_LIMIT = 300.0
_PASS = 1.0 - 1e-9


def verify_reasoning_gym(prompt: Prompt, text: str) -> Outcome:
    """Pass when the family gives the full score to the text, or to the final answer in it."""
    request = {
        "do": "score",
        "family": prompt.meta["family"],
        "config": prompt.meta.get("config", {}),
        "entry": prompt.meta["entry"],
        "answers": list(dict.fromkeys([text.strip(), tidy(final_answer(text))])),
    }
    try:
        found = ask("reasoning_gym", request, seconds=WALL_LIMIT)
    except WorkerFailure as failure:
        return Outcome(passed=None, score=0.0, why=failure.why)
    score = min(1.0, max(0.0, float(found)))
    passed = score >= _PASS
    if passed:
        why = "equal" if text.strip() == prompt.reference else "accepted by the family"
    elif prompt.reference:
        why = expected_got(prompt.reference, text)
    else:
        why = f"rejected by the family, score {score:.2f}"
    return Outcome(passed=passed, score=score, why=why, parts={"family_score": score})


def fits_reasoning_gym(prompt: Prompt) -> str | None:
    """The prompt must carry the family and the entry it was made from."""
    missing = [key for key in ("family", "entry") if key not in prompt.meta]
    return f"meta lacks {', '.join(missing)}" if missing else None


def family_keys() -> dict[str, list[str]]:
    """Every family's name and its configuration keys, without seed and size."""
    return _ask_patiently({"do": "families"})


def levels_of(family: str) -> dict[str, dict[str, Any]]:
    """A family's curriculum: each attribute with the `levels` of its value and the `keys` it sets.

    Raises ValueError for a family that has none.
    """
    try:
        found = ask("reasoning_gym", {"do": "levels", "family": family}, seconds=_GENERATION_LIMIT)
    except WorkerFailure as failure:
        raise ValueError(failure.why) from failure
    if not found:
        raise ValueError(f"family {family!r} has no curriculum: set its own keys instead of level")
    return found


def num_levels(family: str) -> int:
    """How many levels a family's curriculum has: those of its longest attribute."""
    return max(len(attribute["levels"]) for attribute in levels_of(family).values())


def level_config(family: str, level: int) -> dict[str, Any]:
    """A family's configuration keys at one level of its own curriculum, 0 the easiest.

    Every attribute stands at that level, or at its last where it has fewer; a range spans that
    level and no easier one. Raises ValueError for a family without a curriculum and for levels
    that there are not.
    """
    most = num_levels(family) - 1
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= most:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"family {family!r} has the levels 0 to {most}, not {level!r}")
    request = {"do": "level", "family": family, "level": level}
    try:
        return ask("reasoning_gym", request, seconds=_GENERATION_LIMIT)
    except WorkerFailure as failure:
        raise ValueError(failure.why) from failure


def make_entries(
    family: str, config: Mapping[str, Any], *, seed: int, size: int
) -> list[dict[str, Any]]:
    """`size` questions, each `{question, answer, entry}`, the same for the same arguments.

    `answer` is None where the family gives none; `entry` is what `verify_reasoning_gym` needs, as
    JSON values; a question that could not be made is `{error}`. Raises ValueError with the family's
    own words when it refuses its configuration.
    """
    request = {"do": "make", "family": family, "config": dict(config), "seed": seed, "size": size}
    json.dumps(request, allow_nan=False)
    try:
        return _ask_patiently(request)
    except WorkerFailure as failure:
        raise ValueError(failure.why) from failure


def _ask_patiently(request: Mapping[str, Any]) -> Any:
    return ask("reasoning_gym", request, seconds=_GENERATION_LIMIT, patience=_GENERATION_LIMIT)
