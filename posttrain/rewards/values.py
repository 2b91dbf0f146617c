"""Python values as JSON and back, types kept; and comparing two of them strictly.

JSON has no tuples, sets, bytes, complex numbers, infinities and odd keys: those are objects with
one key that begins with `$`. Sent into sandboxes as text, so it imports nothing of posttrain.
"""

# Values of unknown types are what this is about.
# pyright: basic

from __future__ import annotations

import binascii
import collections
import math
from typing import Any

MOST_DEPTH = 100
# Longer decimal numbers are refused by Python's own JSON.
_LONG_INTEGER = 1 << 4096
_PLAIN_DICTS = (dict, collections.defaultdict, collections.OrderedDict, collections.Counter)


def encode(value: Any, depth: int = 0) -> Any:
    """Return JSON values from which `decode` makes an equal value of the same type.

    defaultdict, OrderedDict and Counter count as dict. Anything else that is not exactly of a
    built-in type becomes `{"$object": its type's name}`, which no expected value is equal to.
    Raises ValueError past 100 levels.

    >>> encode((1, {2.5: {3}}))
    {'$tuple': [1, {'$dict': [[2.5, {'$set': [3]}]]}]}
    """
    if depth > MOST_DEPTH:
        raise ValueError(f"nested more than {MOST_DEPTH} levels deep")
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_LONG_INTEGER < value < _LONG_INTEGER else {"$int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind is list:
        return [encode(item, depth + 1) for item in value]
    if kind is tuple or kind is set or kind is frozenset:
        return {f"${kind.__name__}": [encode(item, depth + 1) for item in value]}
    if kind in _PLAIN_DICTS:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: encode(item, depth + 1) for key, item in value.items()}
        pairs = [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in value.items()]
        return {"$dict": pairs}
    if kind is bytes or kind is bytearray:
        return {f"${kind.__name__}": binascii.b2a_base64(value, newline=False).decode()}
    if kind is complex:
        return {"$complex": [encode(value.real), encode(value.imag)]}
    return {"$object": f"{kind.__module__}.{kind.__qualname__}"}


def decode(value: Any, depth: int = 0) -> Any:
    """Return the value that `encode` was given; ValueError for an unknown mark or a broken one.

    >>> decode({"$tuple": [1, {"$float": "inf"}]})
    (1, inf)
    """
    if depth > 2 * MOST_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return [decode(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    marks = [key for key in value if key.startswith("$")]
    if not marks:
        return {key: decode(item, depth + 1) for key, item in value.items()}
    if len(value) != 1 or marks[0] not in _READERS:
        raise ValueError(f"{marks[0]} is no mark, or does not stand alone")
    try:
        return _READERS[marks[0]](value[marks[0]], depth + 1)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{marks[0]}: {error}") from None


class Unknown:
    """Stands for a value that JSON cannot carry; equal to nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _items(content, depth):
    if not isinstance(content, list):
        raise ValueError("a list must follow")
    return [decode(item, depth) for item in content]


def _float(content, _depth):
    if content not in ("inf", "-inf", "nan"):
        raise ValueError("inf, -inf or nan must follow")
    return float(content)


def _complex(real, imag):
    return complex(real, imag)


_READERS = {
    "$tuple": lambda content, depth: tuple(_items(content, depth)),
    "$set": lambda content, depth: set(_items(content, depth)),
    "$frozenset": lambda content, depth: frozenset(_items(content, depth)),
    "$dict": lambda content, depth: dict(decode(pair, depth) for pair in content),
    "$bytes": lambda content, _depth: binascii.a2b_base64(content, strict_mode=True),
    "$bytearray": lambda content, _depth: bytearray(binascii.a2b_base64(content, strict_mode=True)),
    "$complex": lambda content, depth: _complex(*_items(content, depth)),
    "$int": lambda content, _depth: int(content, 16),
    "$float": _float,
    "$object": lambda content, _depth: Unknown(str(content)),
}


def same(expected: Any, got: Any, tolerance: float = 0.0) -> bool:
    """Return True if two decoded values are of the same types all the way down, and equal.

    Floats, also inside complex numbers, may differ by `tolerance`, absolute or relative, but not
    where they are keys or members of sets; nan equals nan.

    >>> same([1], (1,)), same(True, 1), same(2, 2.0), same(0.1 + 0.2, 0.3, 1e-9)
    (False, False, False, True)
    """
    if type(expected) is not type(got) or isinstance(expected, Unknown):
        return False
    if isinstance(expected, float):
        if math.isnan(expected) or math.isnan(got):
            return math.isnan(expected) and math.isnan(got)
        return math.isclose(expected, got, rel_tol=tolerance, abs_tol=tolerance)
    if isinstance(expected, complex):
        parts = ((expected.real, got.real), (expected.imag, got.imag))
        return all(same(a, b, tolerance) for a, b in parts)
    if isinstance(expected, (list, tuple)):
        return len(expected) == len(got) and all(
            same(a, b, tolerance) for a, b in zip(expected, got, strict=True)
        )
    if isinstance(expected, (set, frozenset)):
        return {_typed(item) for item in expected} == {_typed(item) for item in got}
    if isinstance(expected, dict):
        others = {_typed(key): value for key, value in got.items()}
        if len(others) != len(expected):
            return False
        typed = ((_typed(key), value) for key, value in expected.items())
        return all(key in others and same(value, others[key], tolerance) for key, value in typed)
    return expected == got


def _typed(value):
    """Return a hashable that tells 1 from True and 1.0, for keys and members of sets."""
    if isinstance(value, (tuple, frozenset)):
        members = [_typed(item) for item in value]
        return type(value), frozenset(members) if isinstance(value, frozenset) else tuple(members)
    if isinstance(value, float) and math.isnan(value):
        return float, "nan"
    return type(value), value
