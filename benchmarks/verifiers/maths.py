"""Agreement of the maths verifier with people, on hand-labelled pairs of reference and answer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.verifiers.tasks import make_task
from posttrain.bench.measure import Result
from posttrain.records import Outcome
from posttrain.rewards import submit

_MOST = 120
PAIRS = Path(__file__).with_name("maths_pairs.jsonl")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A reference, an answer, and a person's judgement whether they are equal.

    >>> Pair(reference="72", answer="So 72 clips.", equal=True, form="integer").equal
    True
    """

    reference: str
    answer: str
    equal: bool
    form: str
    """Kind of the pair: integer, units, hedged, ..."""


def labelled_pairs() -> list[Pair]:
    """Read the pairs that were labelled by hand for this project."""
    with PAIRS.open(encoding="utf-8") as lines:
        return [Pair(**json.loads(line)) for line in lines]


def disagreements(pairs: Sequence[Pair]) -> list[tuple[Pair, Outcome]]:
    """Return the pairs that the verifier `math` decides otherwise, or not at all."""
    waiting = [(pair, submit(make_task("math", pair.reference), pair.answer)) for pair in pairs]
    found = [(pair, future.result()) for pair, future in waiting]
    return [(pair, outcome) for pair, outcome in found if outcome.passed is not pair.equal]


def measure_agreement(
    pairs: Sequence[Pair] | None = None,
    *,
    name: str = "verify-maths",
    title: str = "The maths verifier against hand-labelled pairs",
    reasons: Callable[[Pair], str] = lambda pair: "",
) -> Result:
    """Measure agreement by form; list every disagreement with the verifier's reason and ours."""
    pairs = pairs or labelled_pairs()
    found = disagreements(pairs)
    sizes = Counter(pair.form for pair in pairs)
    rights = Counter(pair.form for pair in pairs if pair.equal)
    wrong = Counter(pair.form for pair, _ in found)
    rows = [
        [form, str(size), str(rights[form]), str(size - wrong[form])]
        for form, size in sizes.items()
    ]
    share = 1 - len(found) / len(pairs)
    total = ["all", str(len(pairs)), str(sum(rights.values())), str(len(pairs) - len(found))]
    listed = [
        {
            "reference": p.reference[-_MOST:],
            "answer": p.answer[-_MOST:],
            "equal": p.equal,
            "why": outcome.why,
            "reason": reasons(p),
        }
        for p, outcome in found
    ]
    return Result(
        name=name,
        title=title,
        columns=["form", "pairs", "labelled equal", "agreed"],
        rows=[*rows, total],
        figures={"pairs": len(pairs), "agreement": share, "disagreements": listed},
        notes=[f"Agreement {share:.2%}.", *map(_told, listed)],
    )


def _told(one: Mapping[str, object]) -> str:
    """Return a disagreement in words."""
    labelled = "equal" if one["equal"] else "different"
    asked = f"reference `{one['reference']}`, answer `{one['answer']}`, labelled {labelled}"
    because = f" ({one['reason']})" if one["reason"] else ""
    return " ".join(f"Otherwise: {asked}; the verifier: {one['why']}{because}".split())
