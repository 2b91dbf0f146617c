"""Comparing two mathematical answers, in the worker process of verifier `math`.

Lists, units, times, ratios and other bases are taken apart first; what is left, one value against
one, is compared by math-verify.
"""

from __future__ import annotations

import functools
import importlib
import re
from decimal import Decimal
from typing import Any

from posttrain.records import OutcomeKind
from posttrain.rewards.answers import as_number, normalise
from posttrain.rewards.mathparts import (
    Reading,
    as_based,
    as_clock,
    as_ratio,
    decimal_comma,
    is_equation,
    read_math,
    split_name,
)
from posttrain.rewards.mathtext import plain_math
from posttrain.rewards.units import split_unit

# Two numbers that differ by more, absolutely or relative to the larger, are two.
_APART, _FAR_APART = Decimal("5e-7"), Decimal("1e-4")
_SET_LIKE = re.compile(r"\\(?:cup|cap|in|le|leq|ge|geq|ne|neq|lt|gt|emptyset|mathbb|setminus)|[<>]")


def same_at_sight(reference: str, answer: str) -> bool | None:
    """Return whether two texts or two plain numbers are the same; None where it takes a worker."""
    if same_text(reference, answer):
        return True
    expected, got = as_number(plain_math(reference)), as_number(plain_math(answer))
    return None if expected is None or got is None else _near(expected, got)


def same_text(one: str, other: str) -> bool:
    """Return whether two answers are written alike, up to spaces, and words in either case."""
    first, second = (
        re.sub(r"\\text\s*\{([^{}]*)\}|\s", r"\1", plain_math(t)) for t in (one, other)
    )
    first, second = first.replace(" ", ""), second.replace(" ", "")
    both_words = all(re.fullmatch(r"[^\W\d_]{2,}", text) for text in (first, second))
    return (normalise(first) == normalise(second)) if both_words else first == second


def _near(one: Decimal, other: Decimal) -> bool:
    """Return whether two numbers are the same to six decimals, and closely."""
    apart = abs(one - other)
    return apart <= _APART and apart <= _FAR_APART * max(abs(one), abs(other))


def load_worker() -> None:
    """Import math-verify and let it load what every reading needs."""
    equal_values("x + 1", "1 + x")


def answer_request(request: dict[str, Any]) -> Any:
    """Answer `parse` (can each part of the text be read?) or `compare` (how do two compare?)."""
    if request["do"] == "parse":
        return all(is_readable(part) for part in read_math(request["text"]).parts)
    return compared(read_math(request["reference"]), read_math(request["answer"]))


def is_readable(part: str) -> bool:
    """Return whether an answer could be compared with this reference."""
    value = split_unit(split_name(part)[1])[0]
    special = as_clock(value) or as_ratio(value) or as_based(value)
    return special is not None or "\\" in value or parsed(value) is not None


def compared(expected: Reading, got: Reading) -> OutcomeKind:
    """Return how an answer compares with the reference.

    Brackets count where both have them: `(1, 2)`, `[1, 2]`, `(1, 2]` and `\\{1, 2\\}` are four
    answers. `\\{...\\}` has no order and no duplicates, nor have two lists without brackets; a list
    without brackets fits any brackets.
    """
    if expected.shape == got.shape == "one":
        return "passed" if equal_values(expected.parts[0], got.parts[0]) else "wrong"
    if "one" not in (expected.shape, got.shape):
        return "passed" if equal_lists(expected, got) else "wrong"
    single, several = (expected, got) if expected.shape == "one" else (got, expected)
    if _SET_LIKE.search(single.whole) or "\\begin" in single.whole:
        return "passed" if equal_expressions(expected.whole, got.whole) else "wrong"
    point = decimal_comma(several.whole)
    # 1,2 in a reference is a list, 1,22 and 0,5 are numbers.
    if point and (several is got or re.match(r"-?0\.|-?\d+\.\d\d", point)):
        pair = (single.parts[0], point) if single is expected else (point, single.parts[0])
        if equal_values(*pair):
            return "passed"
    if several.shape in ("bare", "{}") and all(
        equal_values(single.parts[0], part) for part in several.parts
    ):
        return "passed"
    return "several_answers" if single is expected else "too_few_answers"


def equal_lists(expected: Reading, got: Reading) -> bool:
    """Return whether two lists are the same: their brackets, and their members."""
    shapes = {expected.shape, got.shape} - {"bare"}
    if len(shapes) == 2:
        return False
    sides = (expected.parts, got.parts)
    named = [len({split_name(part)[0] for part in parts} - {""}) for parts in sides]
    in_order = bool(shapes - {"{}"}) or (max(named) > 1 and min(named) == 0)
    if in_order:
        return len(sides[0]) == len(sides[1]) and all(map(equal, *sides))
    if max(named) > 1 and len(sides[0]) != len(sides[1]):
        return False
    rest = [[part for part in parts if part not in other] for parts, other in (sides, sides[::-1])]
    return all(any(equal(one, other) for other in sides[1]) for one in rest[0]) and all(
        any(equal(one, other) for one in sides[0]) for other in rest[1]
    )


def equal(reference: str, answer: str) -> bool:
    """Return whether two members of lists are equal, lists themselves or values."""
    return same_text(reference, answer) or (
        compared(read_math(reference), read_math(answer)) == "passed"
    )


def equal_values(reference: str, answer: str) -> bool:
    """Compare one value with one: its name, then what it is."""
    names, values = zip(split_name(reference), split_name(answer), strict=True)
    if names[0] != names[1] and all(names):
        return equal_expressions(reference, answer)
    # An equation without a name is no value: x + z = 1 is not 1.
    if is_equation(values[0]) != is_equation(values[1]):
        return any(names) and equal_expressions(reference, answer)
    if any(names) and values != (reference, answer):
        return equal(*values)
    one, other = values
    clock, other_clock = as_clock(one), as_clock(other)
    if clock and other_clock:
        return _equal_clocks(*clock, *other_clock)
    ratio, other_ratio = as_ratio(one), as_ratio(other)
    if ratio or other_ratio:
        return _equal_ratios(ratio or [], other_ratio or [])
    based, other_based = as_based(one), as_based(other)
    if based or other_based:
        return based == other_based
    return _equal_quantities(one, other)


def _equal_clocks(expected: int, half: str, got: int, other_half: str) -> bool:
    """Compare times of day; a reference without AM and PM takes either half of the day."""
    if other_half and not half:
        return expected % 43200 == got % 43200
    return expected == got and (half == other_half or got >= 13 * 3600)


def _equal_ratios(expected: list[str], got: list[str]) -> bool:
    """Compare ratios side by side, or each to its first side."""
    if len(expected) != len(got):
        return False
    return all(map(equal, expected, got)) or all(
        equal_expressions(f"({expected[0]}) \\cdot ({b})", f"({got[0]}) \\cdot ({a})")
        for a, b in zip(expected[1:], got[1:], strict=True)
    )


def _equal_quantities(reference: str, answer: str) -> bool:
    """Compare values with units or without: a unit must be the other side's where both have one."""
    (value, unit), (given, other) = split_unit(reference), split_unit(answer)
    if unit and other and unit != other:
        return False
    if (value, given) == (reference, answer):
        return equal_expressions(reference, answer)
    if equal(value, given):
        return True
    # What is a unit on one side may be a letter on the other: 5 m and 5 \text{ m}.
    written = [
        f"{v} {u}" if u else text
        for v, u, text in ((value, unit, reference), (given, other, answer))
    ]
    return bool(unit) != bool(other) and equal_expressions(*written)


def equal_expressions(reference: str, answer: str) -> bool:
    """Compare by math-verify; an answer that it cannot read or fails on is not equal."""
    if (seen := same_at_sight(reference, answer)) is not None:
        return seen
    one, other = parsed(reference), parsed(answer)
    if one is None or other is None or refuted(one, other) or not verified(one, other):
        return False
    return "%" in reference + answer or not clearly_apart(one, other)


@functools.lru_cache(maxsize=256)
def parsed(text: str) -> Any:
    """Return sympy's form of a formula, None where math-verify cannot read it."""
    latex = importlib.import_module("latex2sympy2_extended.latex2sympy2")
    sympy = importlib.import_module("sympy")
    normal = latex.NormalizationConfig(malformed_operators=True, nits=True, boxed="none")
    config = latex.ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)
    try:
        found = latex.latex2sympy(
            text, is_real=True, normalization_config=normal, conversion_config=config
        )
    except MemoryError:
        raise
    except Exception:
        return None
    unit = sympy.Symbol("i", real=True)
    if isinstance(found, sympy.Expr) and found.has(unit) and "\\sum" not in text:
        found = found.subs(unit, sympy.I)
    return found


def refuted(one: Any, other: Any) -> bool:
    """Return whether two formulas surely differ, so that no algebra system need try to prove it.

    They are of two kinds, speak of other variables, or have two values at one point.
    """
    sympy = importlib.import_module("sympy")
    matrices = (sympy.MatrixBase, sympy.MatrixExpr)
    if isinstance(one, matrices) != isinstance(other, matrices):
        return True
    for first, second in ((one, other), (other, one)):
        if isinstance(first, sympy.Set) and isinstance(second, sympy.Expr):
            return not isinstance(first, sympy.FiniteSet)
    symbols = one.free_symbols, other.free_symbols
    if isinstance(one, sympy.Eq) and isinstance(other, sympy.Eq):
        return symbols[0] != symbols[1]
    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr) and any(symbols)):
        return False
    if any(len(symbol.name) > 1 and symbol.name.isalpha() for symbol in symbols[0] | symbols[1]):
        return False  # a word, which may be read as a product
    if any(e.has(sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit) for e in (one, other)):
        return symbols[0] != symbols[1]
    point = {
        symbol: sympy.Rational(13 + 7 * number, 11)
        for number, symbol in enumerate(sorted(symbols[0] | symbols[1], key=str))
    }
    try:
        first, second = (complex(e.subs(point).evalf(15)) for e in (one, other))
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        return False
    return abs(first - second) > 1e-4 * max(abs(first), abs(second))


def verified(reference: Any, answer: Any) -> bool:
    """Return whether math-verify takes both for equal; an answer that it fails on is not equal.

    Raises where it fails on the reference alone, too: then the answer is not to blame.
    """
    try:
        return agree(reference, answer)
    except MemoryError:
        raise
    except Exception:
        agree(reference, reference)
        return False


def agree(one: Any, other: Any) -> bool:
    """Call `math_verify.verify` without a time-out of its own, its errors raised."""
    math_verify = importlib.import_module("math_verify")
    return bool(
        math_verify.verify(
            one, other, timeout_seconds=0, allow_set_relation_comp=True, raise_on_error=True
        )
    )


def clearly_apart(one: Any, other: Any) -> bool:
    """Return whether two plain numbers differ, relative to the larger: 0 from every other.

    math-verify alone rounds to 6 decimals.
    """
    sympy = importlib.import_module("sympy")
    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)):
        return False
    if any(e.has(sympy.UnevaluatedExpr) or not e.is_number for e in (one, other)):
        return False
    first, second = one.evalf(15), other.evalf(15)
    if not (first.is_Float or first.is_Integer) or not (second.is_Float or second.is_Integer):
        return False
    return bool(abs(first - second) > float(_FAR_APART) * max(abs(first), abs(second)))
