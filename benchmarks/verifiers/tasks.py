"""The tasks that answers are verified for."""

from __future__ import annotations

import json

from posttrain.records import Prompt

FUNCTION = json.dumps(
    {
        "entry_point": "second_largest",
        "tests": [
            {"args": [[3, 1, 2]], "expect": 2},
            {"args": [[5, 5, 4]], "expect": 4},
            {"args": [[7]], "expect": None},
            {"args": [[-1, -2, -3, -3]], "expect": -2},
            {"args": [[10, 9, 10, 8]], "expect": 9},
        ],
    }
)
"""Reference of a code task that is solved by a function."""
PROGRAM = json.dumps(
    {
        "tests": [
            {"stdin": "3\n1 2 3\n", "stdout": "6\n"},
            {"stdin": "1\n-4\n", "stdout": "-4\n"},
            {"stdin": "2\n1000000 1\n", "stdout": "1000001\n"},
        ]
    }
)
"""Reference of a code task that is solved by a program."""


def make_task(verifier: str, reference: str, **meta: object) -> Prompt:
    """Return a prompt for verification, whose message does not matter."""
    return Prompt.make(
        messages=[{"role": "user", "content": "?"}],
        reference=reference,
        verifier=verifier,
        capability=verifier,
        meta=meta,
    )
