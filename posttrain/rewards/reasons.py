"""Outcomes by kind of reason: few words to count by, where `why` tells one answer's story."""

from __future__ import annotations

import re

from posttrain.records import Outcome

_KINDS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), kind)
    for pattern, kind in (
        (r"^truncated", "truncated"),
        (r"^empty", "empty"),
        (r"timeout|timed out", "timeout"),
        (r"out of memory|MemoryError", "out of memory"),
        (r"too much output", "too much output"),
        (r"too many files", "too many files"),
        (r"killed by signal", "killed"),
        (r"ended early|exit status", "ended early"),
        (r"malformed result", "malformed results"),
        (r"no opinion", "no opinion"),
        (r"nothing but an opener", "nothing but an opener"),
        (r"passes from", "below the threshold"),
        (r"crashed", "crashed"),
        (r"^sandbox", "sandbox failed"),
        (r"verifier failed", "verifier failed"),
        (r"reference", "reference cannot be used"),
        (r"got \w*(?:Error|Exception|Interrupt|Exit)\b", "raised an exception"),
        (r"^\w*(?:Error|Exception)\b", "does not load"),
        (r"^(?:test \d+: )?.*expected .*got |^rejected|^expected", "wrong answer"),
        (r"\bno\b.*\banswer\b|no mathematical", "no answer found"),
    )
)


def reason_of(outcome: Outcome) -> str:
    """The kind of reason for an outcome; `passed` where it passed.

    >>> reason_of(Outcome(passed=False, score=0.0, why="expected 4, got 5"))
    'wrong answer'
    >>> reason_of(Outcome(passed=None, score=0.0, why="timeout after 3 s"))
    'timeout'
    """
    if outcome.passed:
        return "passed"
    for pattern, kind in _KINDS:
        if pattern.search(outcome.why):
            return kind
    plain = re.split(r"[:,;(\d]", outcome.why, maxsplit=1)[0].strip()
    return plain[:40] or "no reason given"
