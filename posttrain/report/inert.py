"""Text by others made safe to show: nothing runs, nothing is hidden, nothing floods the page."""

from __future__ import annotations

import unicodedata
from typing import Any

from markupsafe import Markup, escape

ALLOWED_INVISIBLE = frozenset(
    "\n\t\u200c\u200d"
)  # Persian, Indic scripts and emoji need the two joiners
UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
MAX_STACKED_MARKS = 4


def is_unseen(char: str) -> bool:
    """Return True if a reader cannot see `char`, or it changes how its neighbours read.

    >>> is_unseen(chr(0x202E)), is_unseen("a"), is_unseen(chr(0))
    (True, False, True)
    """
    return char not in ALLOWED_INVISIBLE and unicodedata.category(char) in UNSEEN


def spell(char: str) -> str:
    """Return the visible name of an unseen character.

    >>> spell(chr(0x202E))
    '[U+202E]'
    """
    return f"[U+{ord(char):04X}]"


def shorten(text: str, limit: int) -> tuple[str, str, int]:
    """Return head, tail, and the number of characters left out between them.

    >>> shorten("abcdefghij", 5)
    ('abc', 'ij', 5)
    """
    if len(text) <= limit:
        return text, "", 0
    tail = limit * 2 // 5
    head = limit - tail
    return text[:head], text[len(text) - tail :], len(text) - limit


def plain(text: str) -> str:
    """Spell out unseen characters and cut stacks of combining marks; the result is encodable.

    >>> plain("a" + chr(0xD800) + "b")
    'a[U+D800]b'
    """
    return "".join(spell(c) if is_unseen(c) else c for c in _flatten(text.replace("\r\n", "\n")))


def inert(text: str, limit: int = 1600) -> Markup:
    """Return text as HTML: escaped, unseen characters in a span, the middle cut past `limit`."""
    head, tail, left_out = shorten(text, limit)
    if not left_out:
        return _markup(head)
    gap = Markup('<span class="gap">... {} more characters ...</span>').format(f"{left_out:,}")
    return _markup(head) + gap + _markup(tail)


def finalize(value: Any) -> Any:
    """Make every string of the page encodable, as Jinja's last step before escaping."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return plain(value)


def _flatten(text: str) -> str:
    out: list[str] = []
    stacked = 0
    for char in text:
        stacked = stacked + 1 if unicodedata.category(char) in ("Mn", "Me") else 0
        if stacked <= MAX_STACKED_MARKS:
            out.append(char)
    return "".join(out)


def _markup(text: str) -> Markup:
    parts: list[str] = []
    run: list[str] = []
    for char in _flatten(text.replace("\r\n", "\n")):
        if is_unseen(char):
            parts.append(str(escape("".join(run))))
            parts.append(f'<span class="ctl">{spell(char)}</span>')
            run = []
        else:
            run.append(char)
    parts.append(str(escape("".join(run))))
    return Markup("".join(parts))
