"""What the maths worker computes: does math-verify take two texts for equal.

Loaded by worker_main by its path, so it imports nothing of posttrain.
"""

# The packages served here ship no types.
# pyright: basic

from __future__ import annotations

import functools
import re
from typing import Any

_WORDS = re.compile(
    r"(?<![\\A-Za-z])(?:[A-Za-z]{4,}|(?:it|is|so|we|get|the|are|has|to|of|my|be)(?![A-Za-z]))",
    re.IGNORECASE,
)
_MAX_FORMULA_CHARS = 300
# Past this relative difference two numbers are apart even where six decimals agree: 1e-9 and 2e-9.
_RELATIVE = 1e-3


@functools.lru_cache(maxsize=256)
def parsed(text: str) -> list[Any]:
    """What math-verify reads in a text; a bare formula is read as one even without dollar signs.

    Of a formula that it cannot read nothing is taken, where it would take the last number in it.
    """
    import math_verify

    wrapped = "$" in text or "\\boxed" in text or "\\[" in text or "\\(" in text
    has_words = _WORDS.search(text) is not None
    formula = "\\" in text or not has_words
    if not wrapped and formula and len(text) <= _MAX_FORMULA_CHARS:
        plain = () if "\\" in text else (math_verify.ExprExtractionConfig(),)
        forms = (math_verify.LatexExtractionConfig(), *plain)
        found = math_verify.parse(f"${text}$", extraction_config=forms, parsing_timeout=0)
        if found or "\\" in text:
            return found
    return math_verify.parse(text, parsing_timeout=0)


def answer_math(request: dict[str, Any]) -> Any:
    """`parse`: can the text be read; `compare`: every pair's readings and whether they agree."""
    if request["do"] == "parse":
        return bool(parsed(request["text"]))
    return [compared(reference, answer) for reference, answer in request["pairs"]]


def compared(reference_text: str, answer_text: str) -> dict[str, Any]:
    """What was read of a reference and an answer, and whether both are equal."""
    reference, answer = parsed(reference_text), parsed(answer_text)
    equal = bool(reference and answer) and verified(reference, answer)
    if equal and "%" not in reference_text + answer_text:
        equal = not clearly_apart(reference[0], answer[0])
    return {
        "reference": shown(reference),
        "answer": shown(answer),
        "equal": equal,
    }


def verified(reference: list[Any], answer: list[Any]) -> bool:
    """math-verify's word; an answer that it chokes on is not equal.

    Raises where it chokes on the reference itself, too: that is its own failure, not the answer's.
    """
    try:
        return agree(reference, answer)
    except MemoryError:
        raise
    except Exception:
        agree(reference, reference)
        return False


def agree(one: list[Any], other: list[Any]) -> bool:
    """`math_verify.verify` without a time-out of its own, its errors raised."""
    import math_verify

    return bool(
        math_verify.verify(
            one, other, timeout_seconds=0, allow_set_relation_comp=True, raise_on_error=True
        )
    )


def clearly_apart(one: Any, other: Any) -> bool:
    """Whether two plain numbers differ, relative to the larger: math-verify rounds to 6 decimals.

    Both must be numbers without a percent sign; 0 is apart from any other number.
    """
    import sympy

    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)):
        return False
    if any(e.has(sympy.UnevaluatedExpr) or not e.is_number for e in (one, other)):
        return False
    first, second = one.evalf(15), other.evalf(15)
    if not (first.is_Float or first.is_Integer) or not (second.is_Float or second.is_Integer):
        return False
    return bool(abs(first - second) > _RELATIVE * max(abs(first), abs(second)))


def shown(found: list[Any]) -> str:
    """A reading in words; very long numbers have none."""
    if not found:
        return ""
    try:
        return str(found[-1])[:200]
    except ValueError:
        return "a very long number"
