"""Verifier `reasoning_gym`: the score of the family that made the question.

Questions are made and scored in a worker process: some families `eval` what they score, some hang
on hostile answers, and some make other questions under another string hash seed, which the worker
fixes. Some scorers are lax: game_of_life_halting takes any text that is not "True" for "False".
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import json
import re
import sys
from collections.abc import Mapping
from typing import Any, cast

from posttrain.records import Outcome, Prompt
from posttrain.rewards.answers import expected_got, tidy
from posttrain.rewards.places import final_answer, without_reasoning
from posttrain.rewards.verifier import Package, Verifier, undecided
from posttrain.rewards.workers import WorkerFailure, WorkerKind, ask

WALL_LIMIT = 5.0
"""Seconds for one score."""
_GENERATION_LIMIT = 300.0
_PASS = 1.0 - 1e-9
WORKER = WorkerKind(
    name="reasoning_gym",
    module="posttrain.rewards.reasoning_gym",
    package=Package(modules=("reasoning_gym",), install="reasoning-gym"),
    memory_bytes=4 << 30,
)


def _verify(prompt: Prompt, text: str) -> Outcome:
    """Pass where the family gives the full score to the text, or to the final answer in it."""
    text = without_reasoning(text)
    request = {
        "do": "score",
        "family": prompt.meta["family"],
        "config": prompt.meta.get("config", {}),
        "entry": prompt.meta["entry"],
        "answers": list(dict.fromkeys([text, tidy(final_answer(text))])),
    }
    try:
        found = ask(WORKER, request, seconds=WALL_LIMIT)
    except WorkerFailure as failure:
        return undecided(failure.kind, failure.why)
    score = min(1.0, max(0.0, float(found)))
    passed = score >= _PASS
    if passed:
        why = "equal" if text == prompt.reference else "accepted by the family"
    elif prompt.reference:
        why = expected_got(prompt.reference, text)
    else:
        why = f"rejected by the family, score {score:.2f}"
    return Outcome(
        passed=passed,
        score=score,
        why=why,
        kind="passed" if passed else "wrong",
        parts={"family_score": score},
    )


def _check(prompt: Prompt) -> str | None:
    """Refuse a prompt without the family and the entry it was made from."""
    missing = [key for key in ("family", "entry") if key not in prompt.meta]
    return f"meta lacks {', '.join(missing)}" if missing else None


def family_keys() -> dict[str, list[str]]:
    """Return every family's name and its configuration keys, without seed and size."""
    return _ask_patiently({"do": "families"})


def levels_of(family: str) -> dict[str, dict[str, Any]]:
    """Return a family's curriculum: the `levels` of each attribute's value and the `keys` it sets.

    Raises ValueError for a family that has none.
    """
    try:
        found = ask(WORKER, {"do": "levels", "family": family}, seconds=_GENERATION_LIMIT)
    except WorkerFailure as failure:
        raise ValueError(failure.why) from failure
    if not found:
        raise ValueError(f"family {family!r} has no curriculum: set its own keys instead of level")
    return found


def num_levels(family: str) -> int:
    """Return how many levels a family's curriculum has: those of its longest attribute."""
    return max(len(attribute["levels"]) for attribute in levels_of(family).values())


def level_config(family: str, level: int) -> dict[str, Any]:
    """Return a family's configuration keys at one level of its own curriculum, 0 the easiest.

    Every attribute is set to that level, or to its last where it has fewer; a range spans that
    level and no easier one. Raises ValueError for a family without a curriculum and for a level
    that it does not have.
    """
    most = num_levels(family) - 1
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= most:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"family {family!r} has the levels 0 to {most}, not {level!r}")
    request = {"do": "level", "family": family, "level": level}
    try:
        return ask(WORKER, request, seconds=_GENERATION_LIMIT)
    except WorkerFailure as failure:
        raise ValueError(failure.why) from failure


def make_entries(
    family: str, config: Mapping[str, Any], *, seed: int, size: int
) -> list[dict[str, Any]]:
    """Make `size` questions, each `{question, answer, entry}`, the same for the same arguments.

    `answer` is None where the family gives none; `entry` is what scoring needs, as JSON values; a
    question that could not be made is `{error}`. Raises ValueError with the family's own words
    where it refuses its configuration.
    """
    request = {"do": "make", "family": family, "config": dict(config), "seed": seed, "size": size}
    json.dumps(request, allow_nan=False)
    try:
        return _ask_patiently(request)
    except WorkerFailure as failure:
        raise ValueError(failure.why) from failure


def _ask_patiently(request: Mapping[str, Any]) -> Any:
    return ask(WORKER, request, seconds=_GENERATION_LIMIT, patience=_GENERATION_LIMIT)


# ---- in the worker

# Families that `eval` the answer they score: it may be a literal, nothing more.
_LITERAL_FAMILIES = frozenset(
    {"string_insertion", "spiral_matrix", "number_sorting", "binary_matrix", "n_queens"}
)
# Families that give the answer to sympy.parse_expr, which evaluates any Python: formulas only.
_FORMULA_FAMILIES = frozenset(
    {
        "countdown",
        "puzzle24",
        "simple_integration",
        "intermediate_integration",
        "polynomial_multiplication",
    }
)
_FORMULA = re.compile(r"[\w\s+\-*/^().,=]*")
_FUNCTIONS = r"a?(sin|cos|tan)h?|sec|csc|cot|exp|log|ln|sqrt|pi|Abs|Integral"


def encode(value: Any) -> Any:
    """Return JSON values from which `decode` makes an equal value, tuples and odd keys marked."""
    if isinstance(value, tuple):
        return {"$tuple": [encode(item) for item in cast("tuple[Any, ...]", value)]}
    if isinstance(value, list):
        return [encode(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in items):
            return {key: encode(item) for key, item in items}
        return {"$dict": [[encode(key), encode(item)] for key, item in items]}
    if hasattr(value, "item") and type(value).__module__ == "numpy":
        return value.item()
    return value


def decode(value: Any) -> Any:
    """Return the value that `encode` was given."""
    if isinstance(value, list):
        return [decode(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        found = cast("dict[str, Any]", value)
        if "$tuple" in found:
            return tuple(decode(item) for item in found["$tuple"])
        if "$dict" in found:
            return {decode(key): decode(item) for key, item in found["$dict"]}
        return {key: decode(item) for key, item in found.items()}
    return value


@functools.lru_cache(maxsize=64)
def family_dataset(family: str, config: str, seed: int, size: int) -> Any:
    """Make the family's data set; lists become tuples where its configuration holds tuples."""
    configuration = _factory().DATASETS[family][1]
    kinds = {field.name: str(field.type) for field in dataclasses.fields(configuration)}
    values = cast("dict[str, Any]", json.loads(config))
    for key, value in values.items():
        if isinstance(value, list) and "uple" in kinds.get(key, ""):
            values[key] = tuple(cast("list[Any]", value))
    dataset = importlib.import_module("reasoning_gym").create_dataset(
        family, seed=seed, size=size, **values
    )
    if family in _LITERAL_FAMILIES:
        vars(sys.modules[type(dataset).__module__])["eval"] = ast.literal_eval
    return dataset


def _factory() -> Any:
    return importlib.import_module("reasoning_gym.factory")


def is_formula(answer: str) -> bool:
    """Return whether a text holds only digits, operators, single letters and known functions."""
    names = re.findall(r"[^\W\d]\w*", answer)
    return (
        _FORMULA.fullmatch(answer) is not None
        and re.search(r"\.\s*[^\W\d]", answer) is None
        and all(len(name) == 1 or re.fullmatch(_FUNCTIONS, name) for name in names)
    )


def load_worker() -> None:
    """Import reasoning-gym."""
    importlib.import_module("reasoning_gym")


def answer_request(request: dict[str, Any]) -> Any:
    """Answer `families`, `levels`, `level`, `make` or `score`, as the functions above ask."""
    if request["do"] == "families":
        return {
            name: [f.name for f in dataclasses.fields(config) if f.name not in ("seed", "size")]
            for name, (_, config) in _factory().DATASETS.items()
            if name != "composite"
        }
    if request["do"] == "levels":
        return family_levels(request["family"])
    if request["do"] == "level":
        return configuration_at(request["family"], request["level"])
    family, config = request["family"], json.dumps(request["config"], sort_keys=True)
    if request["do"] == "make":
        dataset = family_dataset(family, config, request["seed"], request["size"])
        return [made_entry(dataset, index) for index in range(request["size"])]
    dataset = family_dataset(family, config, 0, 1)
    answers = request["answers"]
    if family in _FORMULA_FAMILIES:
        answers = [answer for answer in answers if is_formula(answer)]
    return max((score(dataset, answer, request["entry"]) for answer in answers), default=0.0)


def attribute_keys(attribute: Any) -> list[str]:
    """Return the configuration keys that an attribute of a curriculum sets."""
    if hasattr(attribute, "field_name"):
        return [attribute.field_name]
    return [attribute.lower_field_name, attribute.upper_field_name]


def family_levels(family: str) -> dict[str, Any]:
    """Return the attributes of a family's curriculum; empty where it has none."""
    if not _factory().has_curriculum(family):
        return {}
    return {
        name: {"levels": encode(attribute.levels), "keys": attribute_keys(attribute)}
        for name, attribute in _factory().create_curriculum(family).attributes.items()
    }


def configuration_at(family: str, level: int) -> dict[str, Any]:
    """Return the keys that the family's curriculum sets at one level of all its attributes."""
    base = importlib.import_module("reasoning_gym.coaching.base_curriculum")
    curriculum = _factory().create_curriculum(family)
    curriculum.set_global_level(level)
    context = base.DefaultCurriculumContext(mode=base.RangeAttributeMode.UPPER_BOUND)
    config = curriculum.generate_configuration(context=context)
    keys = [key for a in curriculum.attributes.values() for key in attribute_keys(a)]
    # Tuples become lists, as in a recipe; family_dataset turns them back.
    return json.loads(json.dumps({key: getattr(config, key) for key in keys}))


def made_entry(dataset: Any, index: int) -> dict[str, Any]:
    """Return one question, or the error with which the family failed to make it."""
    try:
        entry = dataset[index]
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    answer = entry["answer"]
    answer = answer if answer is None or isinstance(answer, str) else str(answer)
    return {"question": entry["question"], "answer": answer, "entry": encode(entry)}


def score(dataset: Any, answer: str, entry: Any) -> float:
    """Return the family's score; 0 for an answer that its scorer fails on, unlike its own."""
    try:
        return float(dataset.score_answer(answer, decode(entry)))
    except (Exception, SystemExit):
        own = decode(entry)
        if isinstance(own["answer"], str) and dataset.score_answer(own["answer"], own) >= 1.0:
            return 0.0
        raise


REASONING_GYM = Verifier(
    name="reasoning_gym",
    summary="the family's own score",
    takes="made with the question",
    verify=_verify,
    check=_check,
    own_data_only=True,
    is_scorable=True,
    package=WORKER.package,
)
