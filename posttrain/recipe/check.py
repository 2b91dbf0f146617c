"""Validate plain values against the schema: every mistake at once, in words, with a suggestion."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from posttrain.recipe.document import as_map
from posttrain.recipe.problems import KeyPath, Mistake, dotted, nearest, show
from posttrain.spec import Spec

SYNONYMS = {
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "steps": "max_steps",
    "evaluation_strategy": "eval_strategy",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "max_new_tokens": "max_completion_length",
    "group_size": "num_generations",
    "k": "num_generations",
    "n": "num_generations",
    "kl_coef": "beta",
    "r": "rank",
    "lora_r": "rank",
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "model_name_or_path": "base",
    "torch_dtype": "dtype",
    "tensor_parallel_size": "num_processes",
    "reward": "verifier",
    "dataset": "data",
    "datasets": "data",
    "evaluation": "eval",
}
"""Names in other tools -> names here or in TRL."""

UNKNOWN = "unknown key"
MISSING = "is required and not given"

TYPE_ERRORS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a section (key: value lines)",
    "model_type": "a section (key: value lines)",
    "model_attributes_type": "a section (key: value lines)",
}

MANY_CHOICES = 16
"""A message lists no more names than these."""

Places = Mapping[str, Sequence[KeyPath]]
"""Key -> the sections it is valid in."""


def validate(annotation: Any, data: Mapping[str, Any], places: Places) -> tuple[Any, list[Mistake]]:
    """Validate without conversions ("5" is no number); the value is None if there are mistakes."""
    try:
        return TypeAdapter[Any](annotation).validate_python(dict(data), strict=True), []
    except ValidationError as error:
        found = _merge_unions(error.errors(include_url=False), data)
        mistakes = [_mistake(annotation, data, *one, places) for one in found]
        return None, _without_echoes(mistakes)


def _without_echoes(mistakes: list[Mistake]) -> list[Mistake]:
    """Leave out that a key is missing where it is there, misspelt."""
    misspelt = {
        (*one.path[:-1], one.suggestion) for one in mistakes if one.message.startswith(UNKNOWN)
    }
    return [one for one in mistakes if not (one.message == MISSING and one.path in misspelt)]


def children(annotation: Any) -> list[type[Spec]]:
    """Return every section class inside an annotation, through unions, lists and mappings."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    return [model for part in get_args(annotation) for model in children(part)]


def keys_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the YAML keys of a section with their annotations."""
    return {info.alias or name: info.annotation for name, info in model.model_fields.items()}


def key_places(model: type[Spec]) -> dict[str, list[KeyPath]]:
    """Return every key below `model` with the sections it is valid in."""
    places: dict[str, list[KeyPath]] = {}

    def walk(section: type[Spec], path: KeyPath) -> None:
        for key, annotation in keys_of(section).items():
            homes = places.setdefault(key, [])
            if path not in homes:
                homes.append(path)
            for child in children(annotation):
                walk(child, (*path, key))

    walk(model, ())
    return places


def unknown_key(path: KeyPath, valid: Sequence[str], places: Places) -> Mistake:
    """Return the mistake of a key that its section lacks: a near key here, or where it belongs."""
    *parents, key = path
    word = str(key)
    meant = SYNONYMS.get(word, word)
    section = tuple(part for part in parents if isinstance(part, str))
    near = meant if meant in valid else nearest(word, valid, 0.75)
    if near is None and meant in places:
        homes = places[meant]
        inside = [home for home in homes if home[: len(section)] == section]
        names = [
            dotted(home) or "the top of the file"
            for home in (inside if section and inside else homes)
        ]
        what = "it belongs" if meant == word else f"{meant!r} belongs"
        return Mistake(path=path, message=f"{UNKNOWN} here; {what} in {_either(names[:3])}")
    if near is None:
        near = nearest(word, valid)
    known = ", ".join(sorted(valid))
    listed = f"; known here: {known}" if near is None and len(valid) <= MANY_CHOICES else ""
    return Mistake(path=path, message=f"{UNKNOWN}{listed}", suggestion=near)


def expected_instead(expected: str, value: Any) -> str:
    """Say what was expected, what was found and, for the well-known traps, what to write."""
    if value is None:
        return f"is empty (null): expected {expected}"
    return f"expected {expected}, found {show(value)}{_advice(expected, value)}"


def _advice(expected: str, value: Any) -> str:
    if isinstance(value, bool | int | float) and expected == "text":
        return ": put it in quotes"
    if not isinstance(value, str):
        whole = isinstance(value, float) and math.isfinite(value) and value.is_integer()
        return f": write {int(value)}" if whole and expected == "a whole number" else ""
    plain = value.strip().lower()
    if plain in ("none", "nil", "null"):
        return ": write null for no value"
    if expected == "true or false":
        if plain in ("yes", "on", "y", "true", "1"):
            return ": write true" + (", without quotes" if plain == "true" else "")
        if plain in ("no", "off", "n", "false", "0"):
            return ": write false" + (", without quotes" if plain == "false" else "")
    if "number" in expected:
        return _number_advice(plain)
    if expected in ("a list",):
        return f": write [{value}]"
    return ""


def _number_advice(text: str) -> str:
    if _is_number(text):
        return ": drop the quotes"
    if _is_number(text.replace(",", "")):
        return f": write {text.replace(',', '')}"
    if text.endswith("%") and _is_number(text[:-1]):
        return f": write {float(text[:-1]) / 100:g}"
    parts = text.split(":")
    if len(parts) > 1 and all(part.isdecimal() for part in parts):
        total = 0
        for part in parts:
            total = total * 60 + int(part)
        return f": base-60 numbers are gone from YAML, write {total}"
    return ""


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]


def _merge_unions(errors: list[ErrorDetails], data: Any) -> Iterator[tuple[KeyPath, ErrorDetails]]:
    """Drop pydantic's union labels from the paths, and the branches that were not meant."""
    unions: dict[KeyPath, dict[str, list[tuple[KeyPath, ErrorDetails]]]] = {}
    for details in errors:
        path, union = _real_path(details, data)
        if union is None:
            yield path, details
        else:
            at, label = union
            unions.setdefault(at, {}).setdefault(label, []).append((path, details))
    for at, branches in unions.items():
        yield from _meant_branch(at, branches)


def _meant_branch(
    at: KeyPath, branches: Mapping[str, list[tuple[KeyPath, ErrorDetails]]]
) -> Iterator[tuple[KeyPath, ErrorDetails]]:
    def shallow(found: list[tuple[KeyPath, ErrorDetails]]) -> bool:
        return all(path == at and d["type"] in (*TYPE_ERRORS, "literal_error") for path, d in found)

    deep = [found for found in branches.values() if not shallow(found)]
    if deep:
        yield from deep[0]
        return
    details = [d for found in branches.values() for _, d in found]
    wanted = dict.fromkeys(_expectation(d) for d in details)
    choices = [
        c for d in details if d["type"] == "literal_error" for c in _choices(_expectation(d))
    ]
    context = {"expected": " or ".join(wanted), "choices": choices}
    yield at, {**details[0], "type": "union", "ctx": context}


def _real_path(details: ErrorDetails, data: Any) -> tuple[KeyPath, tuple[KeyPath, str] | None]:
    path: list[str | int] = []
    union: tuple[KeyPath, str] | None = None
    here: Any = data
    loc = details["loc"]
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        in_list = isinstance(here, list) and isinstance(part, int)
        if in_list or (isinstance(here, dict) and part in here):
            here = cast("Any", here)[part]
        elif last and details["type"] == "missing":
            pass
        else:
            # Not in the data: a label pydantic adds for a union's branch, or '[key]'.
            if part != "[key]" and union is None:
                union = (tuple(path), str(part))
            continue
        path.append(part)
    return tuple(path), union


def _expectation(details: ErrorDetails) -> str:
    if details["type"] == "literal_error":
        return str(details.get("ctx", {})["expected"])
    return TYPE_ERRORS[details["type"]]


def _choices(expected: str) -> list[str]:
    return [part.strip("'") for part in expected.replace(" or ", ", ").split(", ")]


def _mistake(
    annotation: Any, data: Any, path: KeyPath, details: ErrorDetails, places: Places
) -> Mistake:
    kind = details["type"]
    context = details.get("ctx", {})
    value = details["input"]
    if kind == "extra_forbidden":
        return _unknown_key(_sections_at(annotation, data, path[:-1]), path, places)
    if kind == "missing":
        return Mistake(path=path, message=MISSING)
    if kind == "union_tag_not_found":
        kinds = [_kinds(section)[0] for section in _sections_at(annotation, data, path)]
        message = f"{MISSING}: one of {', '.join(kinds)}"
        return Mistake(path=(*path, "kind"), message=message)
    if kind == "union_tag_invalid":
        return _no_choice((*path, "kind"), context["expected_tags"], as_map(value)["kind"])
    if kind == "union":
        near = nearest(value, context["choices"]) if isinstance(value, str) else None
        message = expected_instead(context["expected"], value)
        return Mistake(path=path, message=message, suggestion=near)
    if kind in TYPE_ERRORS:
        return Mistake(path=path, message=expected_instead(TYPE_ERRORS[kind], value))
    if kind == "literal_error":
        word = str(path[-1]) if details["loc"][-1] == "[key]" else value
        return _no_choice(path, context["expected"], word)
    if kind == "posttrain":
        return Mistake(path=(*path, *context["at"]), message=details["msg"])
    if kind == "value_error":
        return Mistake(path=path, message=details["msg"].removeprefix("Value error, "))
    said = details["msg"].removeprefix("Input should be ").replace("List should have", "needs")
    message = _limit(kind, context, value) or f"{said}, found {show(value)}"
    return Mistake(path=path, message=message)


def _unknown_key(sections: Sequence[type[Spec]], path: KeyPath, places: Places) -> Mistake:
    reserved = [why for section in sections if (why := section.reserved(str(path[-1])))]
    if reserved:
        return Mistake(path=path, message=f"posttrain sets this itself: {reserved[0]}")
    valid = dict.fromkeys(key for section in sections for key in keys_of(section))
    return unknown_key(path, list(valid), places)


def _no_choice(path: KeyPath, expected: str, value: Any) -> Mistake:
    choices = _choices(expected)
    near = nearest(value, choices) if isinstance(value, str) else None
    shown = expected if len(choices) <= MANY_CHOICES else f"one of {len(choices)} names"
    return Mistake(path=path, message=f"expected {shown}, found {show(value)}", suggestion=near)


def _limit(kind: str, context: Mapping[str, Any], value: Any) -> str | None:
    match kind:
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}, is {show(value)}"
        case "greater_than":
            return f"must be above {context['gt']:g}, is {show(value)}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}, is {show(value)}"
        case "less_than":
            return f"must be below {context['lt']:g}, is {show(value)}"
        case "too_short":
            return f"needs at least {context['min_length']}, has {context['actual_length']}"
        case "string_too_short":
            return "is empty: give it a value"
        case "string_pattern_mismatch":
            return (
                "use letters, digits, dots, dashes and underscores only, the first a letter "
                f"or digit; found {show(value)}"
            )
        case _:
            return None


def _sections_at(annotation: Any, data: Any, path: KeyPath) -> list[type[Spec]]:
    """Return the classes of the section at `path`: one, or all of a union where `kind` is wrong."""
    here = _of_kind(children(annotation), data)
    for part in path:
        data = data[part]
        if isinstance(part, str):
            found = [keys_of(section)[part] for section in here if part in keys_of(section)]
            here = _of_kind([child for one in found for child in children(one)], data)
    return here


def _of_kind(sections: list[type[Spec]], data: Any) -> list[type[Spec]]:
    kind = as_map(data).get("kind")
    return [section for section in sections if kind in _kinds(section)] or sections


def _kinds(section: type[Spec]) -> Sequence[Any]:
    return get_args(keys_of(section).get("kind"))
