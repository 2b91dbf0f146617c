"""Endless small Python problems: a question, a short solution, and tests that expose wrong ones.

Tests are inputs and outputs, computed by a Python twin of each solution; no text is executed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

LEVELS = (1, 2, 3, 4, 5)
"""1: one operation on a number; 2: two; 3: on a text; 4: on a list; 5: a condition, two numbers."""
_NAMES = ("f", "g", "h", "calc", "solve")
_NUMBERS = (0, 1, -1, 2, -2, 3, 5, -7, 8, 12, -12, 30, 101)
_TEXTS = ("", "a", "Ab", "abba", "hello", "Hello World", "banana", "XYZ", "  x ", "a-b-c")
_LISTS: tuple[list[int], ...] = (
    [], [4], [0], [-3], [1, 2, 3], [3, 1, 2], [5, 5, 2], [-1, -4, 7], [10, 0, -10, 6], [2, 4, 7, 9],
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A question with its solution and its tests.

    >>> problem = make_problem(Random(1), 1)
    >>> problem.answer.startswith("def ")
    True
    """

    question: str
    answer: str
    """Shortest solution, a definition in one or two lines."""
    reference: str
    """Tests as JSON text: `{"entry_point", "tests": [{"args", "expect"}, ...]}`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """A function in words and in code, with a twin that computes its results."""

    words: str
    code: str
    twin: Callable[..., Any]
    args: str = "x"
    inputs: tuple[tuple[Any, ...], ...] = ()


def make_problem(rng: Random, level: int) -> Problem:
    """Make a problem of one level, determined by the state of `rng`."""
    if level not in LEVELS:
        raise ValueError(f"python_functions has the levels {LEVELS}, not {level}")
    task = _MAKERS[level](rng)
    name = rng.choice(_NAMES)
    signature = f"{name}({task.args})"
    opening = rng.choice(
        [
            f"Write a Python function {signature} that returns {task.words}.",
            f"Define a Python function {signature} returning {task.words}.",
            f"In Python, write {signature}. It returns {task.words}.",
        ]
    )
    tests = [{"args": list(given), "expect": task.twin(*given)} for given in task.inputs]
    return Problem(
        question=opening,
        answer=f"def {signature}:\n    return {task.code}",
        reference=json.dumps({"entry_point": name, "tests": tests}),
    )


def _numbers(*near: int) -> tuple[tuple[Any, ...], ...]:
    """Return inputs for one number: signs, zero, and values around the given ones."""
    close = [one + step for one in near for step in (-1, 0, 1)]
    return tuple((number,) for number in dict.fromkeys((*close, *_NUMBERS)))


def _operation(rng: Random) -> tuple[str, str, Callable[[int], int], int]:
    """Draw an operation on `x`: words, code, twin, and the constant in it."""
    n = rng.randint(2, 20)
    made: list[tuple[str, str, Callable[[int], int]]] = [
        (f"x plus {n}", f"x + {n}", lambda x: x + n),
        (f"x minus {n}", f"x - {n}", lambda x: x - n),
        (f"x times {n}", f"x * {n}", lambda x: x * n),
        (f"{n} minus x", f"{n} - x", lambda x: n - x),
        (f"the remainder of x divided by {n} (x % {n})", f"x % {n}", lambda x: x % n),
        (f"x divided by {n}, rounded down", f"x // {n}", lambda x: x // n),
        (f"the larger of x and {n}", f"max(x, {n})", lambda x: max(x, n)),
        (f"the smaller of x and {n}", f"min(x, {n})", lambda x: min(x, n)),
        (f"x squared, plus {n}", f"x * x + {n}", lambda x: x * x + n),
        (f"the absolute value of x, times {n}", f"abs(x) * {n}", lambda x: abs(x) * n),
        (f"minus x, plus {n}", f"-x + {n}", lambda x: -x + n),
    ]
    words, code, twin = rng.choice(made)
    return words, code, twin, n


def _one_operation(rng: Random) -> _Task:
    words, code, twin, n = _operation(rng)
    return _Task(words=words, code=code, twin=twin, inputs=_numbers(n, -n))


def _two_operations(rng: Random) -> _Task:
    n, m = rng.randint(2, 12), rng.randint(2, 12)
    made: list[tuple[str, str, Callable[[int], int]]] = [
        (f"x times {n}, then plus {m}", f"x * {n} + {m}", lambda x: x * n + m),
        (f"x times {n}, then minus {m}", f"x * {n} - {m}", lambda x: x * n - m),
        (f"x plus {n}, then times {m}", f"(x + {n}) * {m}", lambda x: (x + n) * m),
        (f"x minus {n}, then times {m}", f"(x - {n}) * {m}", lambda x: (x - n) * m),
        (f"x squared, then minus {n} times x", f"x * x - {n} * x", lambda x: x * x - n * x),
        (f"x plus {n}, then squared", f"(x + {n}) ** 2", lambda x: (x + n) ** 2),
        (f"{n} times x, then modulo {m}", f"{n} * x % {m}", lambda x: n * x % m),
        (f"x plus {n}, then modulo {m}", f"(x + {n}) % {m}", lambda x: (x + n) % m),
        (
            f"the absolute value of x minus {n}, that is |x - {n}|, then plus {m}",
            f"abs(x - {n}) + {m}",
            lambda x: abs(x - n) + m,
        ),
    ]
    words, code, twin = rng.choice(made)
    return _Task(words=words, code=code, twin=twin, inputs=_numbers(n, -n, m))


def _text(rng: Random) -> _Task:
    n = rng.randint(2, 5)
    piece = rng.choice(("!", "ab", "end", "xo", "-", "ing", "un"))
    letter, other = rng.sample("abehlnox", 2)
    made: list[tuple[str, str, Callable[[str], Any]]] = [
        ("s reversed", "s[::-1]", lambda s: s[::-1]),
        ("s in upper case", "s.upper()", lambda s: s.upper()),
        ("s in lower case", "s.lower()", lambda s: s.lower()),
        (f"the length of s plus {n}", f"len(s) + {n}", lambda s: len(s) + n),
        (f"s repeated {n} times", f"s * {n}", lambda s: s * n),
        (f's followed by "{piece}"', f's + "{piece}"', lambda s: s + piece),
        (f'"{piece}" followed by s', f'"{piece}" + s', lambda s: piece + s),
        (f"the first {n} characters of s", f"s[:{n}]", lambda s: s[:n]),
        (f"s without its first {n} characters", f"s[{n}:]", lambda s: s[n:]),
        (
            f'how many times "{letter}" occurs in s',
            f's.count("{letter}")',
            lambda s: s.count(letter),
        ),
        (
            f's with every "{letter}" replaced by "{other}"',
            f's.replace("{letter}", "{other}")',
            lambda s: s.replace(letter, other),
        ),
        (
            f's reversed and then followed by "{piece}"',
            f's[::-1] + "{piece}"',
            lambda s: s[::-1] + piece,
        ),
        ("True if s reads the same backwards, else False", "s == s[::-1]", lambda s: s == s[::-1]),
        (f'True if "{letter}" is in s, else False', f'"{letter}" in s', lambda s: letter in s),
    ]
    words, code, twin = rng.choice(made)
    extra = (letter, f"{letter}x{letter}", other + letter, "abcdefgh")
    inputs = tuple((text,) for text in dict.fromkeys((*_TEXTS, *extra)))
    return _Task(words=words, code=code, twin=twin, args="s", inputs=inputs)


def _list(rng: Random) -> _Task:
    n = rng.randint(1, 6)
    made: list[tuple[str, str, Callable[[list[int]], Any], bool]] = [
        (f"the sum of the list a, plus {n}", f"sum(a) + {n}", lambda a: sum(a) + n, True),
        ("the list a reversed", "a[::-1]", lambda a: a[::-1], True),
        (f"the length of the list a, times {n + 1}", f"len(a) * {n + 1}",
         lambda a: len(a) * (n + 1), True),
        ("the list a sorted in rising order", "sorted(a)", lambda a: sorted(a), True),
        ("the list a sorted in falling order", "sorted(a)[::-1]", lambda a: sorted(a)[::-1], True),
        (f"the largest number of the list a, plus {n}", f"max(a) + {n}",
         lambda a: max(a) + n, False),
        (f"the smallest number of the list a, minus {n}", f"min(a) - {n}",
         lambda a: min(a) - n, False),
        ("the last element of the list a", "a[-1]", lambda a: a[-1], False),
        (f"the first {n} elements of the list a", f"a[:{n}]", lambda a: a[:n], True),
        (f"the list of all numbers of the list a times {n + 1}", f"[x * {n + 1} for x in a]",
         lambda a: [x * (n + 1) for x in a], True),
        (f"the list of all numbers of the list a plus {n}", f"[x + {n} for x in a]",
         lambda a: [x + n for x in a], True),
        (f"the list of the numbers of the list a that are greater than {n}",
         f"[x for x in a if x > {n}]", lambda a: [x for x in a if x > n], True),
        ("the list of the even numbers of the list a", "[x for x in a if x % 2 == 0]",
         lambda a: [x for x in a if x % 2 == 0], True),
        (f"how many numbers of the list a are less than {n}", f"sum(x < {n} for x in a)",
         lambda a: sum(x < n for x in a), True),
        (f"True if {n} is in the list a, else False", f"{n} in a", lambda a: n in a, True),
    ]  # fmt: skip
    words, code, twin, takes_empty = rng.choice(made)
    lists = (*_LISTS, [n, n + 1, n - 1], [n - 1, n + 1, n], [9, 8, 7, 6, 5, 4, 3, 3])
    given = [one for one in lists if one or takes_empty]
    return _Task(words=words, code=code, twin=twin, args="a", inputs=tuple((one,) for one in given))


def _condition(rng: Random) -> _Task:
    n, m, k = rng.randint(2, 9), rng.randint(2, 9), rng.randint(-5, 10)
    one = _numbers(n, m, k, n * 3)
    steps = (-2, -1, 0, 1, 4)
    two = tuple((x, x + step) for x in (-6, -1, 0, 1, 3, 8, k) for step in steps)
    made: list[tuple[str, str, Callable[..., Any], str, Sequence[tuple[Any, ...]]]] = [
        (f"x plus {n} if x is even, else x minus {m}", f"x + {n} if x % 2 == 0 else x - {m}",
         lambda x: x + n if x % 2 == 0 else x - m, "x", one),
        (f"x times {n} if x is greater than {k}, else x plus {m}",
         f"x * {n} if x > {k} else x + {m}", lambda x: x * n if x > k else x + m, "x", one),
        (f"True if x is divisible by {n}, else False", f"x % {n} == 0",
         lambda x: x % n == 0, "x", one),
        (f"True if x is greater than {k} and even, else False", f"x > {k} and x % 2 == 0",
         lambda x: x > k and x % 2 == 0, "x", one),
        (f'"big" if x is at least {k}, else "small"', f'"big" if x >= {k} else "small"',
         lambda x: "big" if x >= k else "small", "x", one),
        (f"x minus y if x is greater than y, else {k}", f"x - y if x > y else {k}",
         lambda x, y: x - y if x > y else k, "x, y", two),
        (f"x plus {n} times y", f"x + {n} * y", lambda x, y: x + n * y, "x, y", two),
        (f"the larger of x and y, plus {n}", f"max(x, y) + {n}",
         lambda x, y: max(x, y) + n, "x, y", two),
        (f"x times y, minus {n}", f"x * y - {n}", lambda x, y: x * y - n, "x, y", two),
        (f"True if x plus y is greater than {k}, else False", f"x + y > {k}",
         lambda x, y: x + y > k, "x, y", (*two, (k, 0), (k, 1), (0, k + 1))),
    ]  # fmt: skip
    words, code, twin, args, inputs = rng.choice(made)
    return _Task(words=words, code=code, twin=twin, args=args, inputs=tuple(dict.fromkeys(inputs)))


_MAKERS: dict[int, Callable[[Random], _Task]] = {
    1: _one_operation,
    2: _two_operations,
    3: _text,
    4: _list,
    5: _condition,
}
