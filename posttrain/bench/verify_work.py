"""Answers to verify, right and wrong in turn, from generators: nothing is downloaded."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

from posttrain.bench.maths_agreement import labelled_pairs
from posttrain.data.constraints import make_writing
from posttrain.data.python_functions import make_problem
from posttrain.records import Prompt
from posttrain.rewards.reasoning_gym import make_entries

Work = tuple[Prompt, str]
"""A task and an answer to it."""

HUNG = r"\boxed{9^{9^{9^9}}}"
"""Keeps a computer algebra system at work until it is killed."""
_FAMILIES = ("chain_sum", "gcd", "letter_counting", "number_sorting", "knights_knaves")


def work_of(verifier: str, size: int, *, seed: int = 0) -> list[Work]:
    """`size` answers for a verifier."""
    return list(itertools.islice(_MAKERS[verifier](random.Random(f"{verifier} {seed}")), size))


def with_hung(work: Sequence[Work], share: float, *, seed: int = 0) -> list[Work]:
    """The same with that share of answers, drawn at random, replaced by ones that hang."""
    places = set(random.Random(seed).sample(range(len(work)), round(share * len(work))))
    return [
        (_task("math", "7"), HUNG) if place in places else one for place, one in enumerate(work)
    ]


def _task(verifier: str, reference: str, **fields: object) -> Prompt:
    return Prompt.make(
        messages=[{"role": "user", "content": "?"}],
        reference=reference,
        verifier=verifier,
        capability=verifier,
        meta=fields,
    )


def _exact(rng: random.Random) -> Iterator[Work]:
    while True:
        number = rng.randrange(10_000)
        yield _task("exact", str(number)), f"The answer is {number + rng.randrange(2)}."


def _math(rng: random.Random) -> Iterator[Work]:
    pairs = labelled_pairs()
    while True:
        pair = rng.choice(pairs)
        yield _task("math", pair.reference), pair.answer


def _choice(rng: random.Random) -> Iterator[Work]:
    while True:
        right, said = rng.choice("ABCD"), rng.choice("ABCD")
        yield _task("choice", right), f"I think the answer is ({said})."


def _instructions(rng: random.Random) -> Iterator[Work]:
    while True:
        writing = make_writing(rng, rng.randint(1, 3))
        answer = writing.answer if rng.randrange(2) else writing.answer[: len(writing.answer) // 2]
        yield _task("instructions", writing.reference), answer or "no"


def _reasoning_gym(rng: random.Random) -> Iterator[Work]:
    while True:
        for family in _FAMILIES:
            for made in make_entries(family, {}, seed=rng.randrange(2**31), size=50):
                answer = made["answer"] if rng.randrange(2) else "17"
                prompt = _task("reasoning_gym", made["answer"], family=family, entry=made["entry"])
                yield prompt, answer


def _code(rng: random.Random) -> Iterator[Work]:
    while True:
        problem = make_problem(rng, rng.randint(1, 5))
        answer = (
            problem.answer if rng.randrange(2) else problem.answer.replace("return", "return -")
        )
        yield _task("code", problem.reference), answer


_MAKERS = {
    "exact": _exact,
    "math": _math,
    "choice": _choice,
    "instructions": _instructions,
    "reasoning_gym": _reasoning_gym,
    "code": _code,
}
VERIFIERS = tuple(_MAKERS)
