"""Values as JSON: types survive, and only the same is the same."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, defaultdict, namedtuple
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rewards.values import decode, encode, same

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
hashables = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner))
values = st.recursive(
    hashables | st.sets(hashables, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(hashables, inner, max_size=3)
    ),
    max_leaves=8,
)


@given(values)
def test_what_goes_in_comes_out(value: Any) -> None:
    text = json.dumps(encode(value), allow_nan=False)
    back = decode(json.loads(text))
    assert back == value
    # Types too, all the way down: repr tells 1, 1.0 and True apart where it is deterministic.
    assert same(value, back)


@given(values, values)
def test_same_is_stricter_than_equal(one: Any, other: Any) -> None:
    if same(one, other):
        assert one == other
    assert same(one, other) == same(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (0, False),
        (1, 1.0),
        ("1", 1),
        ([1], (1,)),
        ({1}, frozenset({1})),
        ({1}, {True}),
        ({1: "a"}, {True: "a"}),
        ({(1, 2)}, {(1, 2.0)}),
        ([], ()),
        (b"a", "a"),
        (b"a", bytearray(b"a")),
        (None, False),
        ({"a": 1}, {"a": 1, "b": 2}),
        ([1, 2], [2, 1]),
        (1 + 0j, 1),
        (math.inf, -math.inf),
    ],
)
def test_not_the_same(one: Any, other: Any) -> None:
    assert not same(one, other)
    assert not same(other, one)
    assert same(one, one)
    assert not same([one], [other], 0.5)


def test_floats_within_the_tolerance() -> None:
    assert same([{"a": 0.1 + 0.2}], [{"a": 0.3}], 1e-9)
    assert not same(0.1 + 0.2, 0.3)
    assert not same(1.0, 1.1, 0.05)
    assert same(1e300, 1.01e300, 0.05)
    assert same(math.nan, math.nan)
    assert not same(math.nan, 0.0, 0.9)
    assert same(1 + 2j, 1 + 2.0000000001j, 1e-6)


class Pair(namedtuple("Pair", "a b")):
    pass


class Number(IntEnum):
    ONE = 1


class Text(str):
    pass


def test_only_the_built_in_types_count() -> None:
    for value in (Pair(1, 2), Number.ONE, Text("x"), object(), iter([]), len):
        got = decode(json.loads(json.dumps(encode(value))))
        assert "." in repr(got)
        assert not same(got, got)
    ordered = OrderedDict(a=1)
    for value in (ordered, defaultdict(int, a=1), Counter("a")):
        assert same({"a": 1}, decode(json.loads(json.dumps(encode(value)))))


def test_what_json_itself_would_break() -> None:
    for value in (10**5000, -(10**5000), math.inf, {"$tuple": [1]}, {1: 2, "1": 3}, "\ud800"):
        assert same(value, decode(json.loads(json.dumps(encode(value)))))


@pytest.mark.parametrize(
    "broken",
    [
        {"$tuple": 1},
        {"$tuple": [1], "more": 2},
        {"$unknown": 1},
        {"$set": [[1]]},
        {"$float": "1"},
        {"$float": ["nan"]},
        {"$int": "zz"},
        {"$int": 5},
        {"$bytes": "???"},
        {"$complex": [1]},
        {"$dict": [1]},
    ],
)
def test_broken_marks_are_told(broken: Any) -> None:
    with pytest.raises(ValueError, match=r"\$"):
        decode([broken])


def test_depth_is_limited() -> None:
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(ValueError, match="levels deep"):
        encode(deep)
    with pytest.raises(ValueError, match="deep"):
        decode([deep])
