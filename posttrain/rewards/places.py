"""Where a completion's answer stands: one grammar for every verifier that compares a stated answer.

Each search is linear in the text, since a policy may write anything.
"""

# Other scripts' words and signs are what this module is about.
# ruff: noqa: RUF001

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

Form = Literal["tagged", "boxed", "hashes", "answer line", "last line", "whole text"]
"""Mark by which an answer was found."""

MAX_END_CHARS = 2000
"""Characters at the end whose lines are read where nothing marks the answer. One more is kept, so
that a formula that was cut is too long."""
_TAG = r"(?:think|thinking|thought|reasoning|scratchpad)"
_REASONING = re.compile(
    rf"(?P<open><{_TAG}>|\[THINK\]|<\|begin_of_thought\|>)"
    rf"|</{_TAG}>|\[/THINK\]|<\|end_of_thought\|>",
    re.IGNORECASE,
)
_DISPLAY = re.compile(
    r"(?<!\\)\\(?P<bracket>[\[(])|(?P<dollars>\$\$)|(?P<dollar>^[ \t]*\$[ \t]*$)"
    r"|\\begin\{(?P<name>(?:equation|displaymath|math|align|aligned|gather|gathered|multline"
    r"|eqnarray|split|array|cases|[pbvBV]?matrix)\*?)\}",
    re.MULTILINE,
)
_HASHES = re.compile(r"^[ \t]*####[ \t]*+(\S.*)$", re.MULTILINE)
# The first in a line; the answer itself may stand on a line below.
_ANSWER = re.compile(
    r"(?:\banswers?\b(?:\s*\([^()\n]{0,40}\))?(?:\s(?:to|for|of|in)\s[^\n.:=]{0,60}?)?"
    r"|\bcorrect\s(?:option|choice)\b|\b(?:ответ|respuesta|réponse|antwort|resposta|risposta)\b"
    r"|الإجابة|إجابة|उत्तर|答案|回答|解答|答え?|정답|답)"
    r"(?:[\s*_]*+(?:(?:is|are|would\sbe|must\sbe|should\sbe|es|est|ist|é|è)\b(?!['’])"
    r"|[:：=—]|是|为|為|は|은|는))++[*_\s]*+(?P<rest>\S.*)$",
    re.MULTILINE | re.IGNORECASE,
)
_OPENS_LINE = re.compile(
    r"\W*(?:(?:so|thus|hence|therefore)\W+)?(?:my\s|the\s)?|.*\bfinal\s", re.IGNORECASE
)
DENIAL = re.compile(
    r"(?:\b(?:not|never|neither|cannot|except|other\sthan|anything\sbut|не|nicht|no\ses|pas)\b"
    r"|n['’]t\b|不是|不为|不能|并非|不可能)[^.,;:!?\n]{0,80}$",
    re.IGNORECASE,
)
"""The end of a text that denies what follows it in the same clause."""
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_MOST_BOXES = 20
_MOST_BETWEEN = 70
_NO_WORDS = re.compile(
    r"\\(?:text|mathrm|textbf|mbox)\s*\{|\\(?:q?quad|left|right)(?![A-Za-z])|\\[()\[\],;:! ]"
    r"|[$&{}*~\\\s]|[A-Za-z]\w?(?:_\{?\w{1,3}\}?)?\s*=(?!=)"
)
_JOINING = re.compile(
    r"\b(?:and|or|either|maybe|perhaps|possibly|alternatively|und|oder|et|ou|и|или)\b|[和或及与、]",
    re.IGNORECASE,
)
_TURNING = re.compile(
    r"\b(?:so|wait|thus|hence|then|therefore|not|but|actually|instead|which|because)\b|[.!?。]\s"
    r"|\\(?:implies|Rightarrow)",
    re.IGNORECASE,
)


def final_answer(text: str) -> str:
    r"""Return the answer that the text gives, else the whole text.

    >>> final_answer("3 + 4 = 7, so\nThe answer is 7.")
    '7.'
    >>> final_answer(r"Hence \boxed{1} or \boxed{2}.")
    '1, 2'
    """
    return locate_answer(text)[0]


def locate_answer(text: str) -> tuple[str, Form]:
    """Return `final_answer` and how it was marked.

    >>> locate_answer("<think>#### 71</think>#### 72")
    ('72', 'hashes')
    """
    text = without_reasoning(text)
    return next(marked_answers(text), (text, "whole text"))


def without_reasoning(text: str) -> str:
    """Return the text without `<think>...</think>` and its kin, closed or not.

    >>> without_reasoning("<think>7?</think> 8"), without_reasoning("7?</think> 8 <think> 9?")
    ('8', '8')
    """
    kept: list[str] = []
    start: int | None = 0
    for tag in _REASONING.finditer(text):
        if not tag["open"]:
            if start is not None:  # it was opened in the prompt
                kept.clear()
            start = tag.end()
        elif start is not None:
            kept.append(text[start : tag.start()])
            start = None
    if start is not None:
        kept.append(text[start:])
    return "\n".join(kept).strip()


def marked_answers(text: str) -> Iterator[tuple[str, Form]]:
    r"""Yield the marked answers: a tag, then the last boxes, hashes, and phrases, the last first.

    A phrase within a sentence counts after all of them, unless it speaks of a final answer.

    >>> list(marked_answers("The answer is:\n\\[\n\\boxed{9}\n\\]"))
    [('9', 'boxed'), ('\\[ \\boxed{9} \\]', 'answer line')]
    """
    text = one_line_displays(text)
    if (tagged := _last_tagged(text)) is not None:
        yield next(marked_answers(tagged), (tagged.strip(), None))[0], "tagged"
    found: list[tuple[bool, int, str, Form]] = []
    if boxes := _last_boxes(text):
        found.append((True, *boxes, "boxed"))
    for hashes in _HASHES.finditer(text):
        found.append((True, hashes.start(), hashes[1], "hashes"))
    for phrase in _ANSWER.finditer(text):
        before = text[max(0, phrase.start() - 80) : phrase.start()].rpartition("\n")[2]
        denied = "not " if DENIAL.search(before) else ""
        opens = _OPENS_LINE.fullmatch(before) is not None
        found.append((opens, phrase.start(), denied + phrase["rest"], "answer line"))
    for _, _, content, form in sorted(found, reverse=True):
        yield content.rstrip("*_ \t\r").strip(), form


def last_lines(text: str) -> Iterator[str]:
    """Yield the lines at the end of the text, the last first, without those that hold no word."""
    for line in reversed(one_line_displays(text)[-MAX_END_CHARS - 1 :].splitlines()):
        if re.search(r"\w|\\\{", line):
            yield line.strip()


def one_line_displays(text: str) -> str:
    r"""Return the text with each display formula on one line.

    >>> one_line_displays("So\n\\[\nx = 9\n\\]")
    'So\n\\[ x = 9 \\]'
    """
    pieces: list[str] = []
    start = position = 0
    missing: set[str] = set()
    while opening := _DISPLAY.search(text, position):
        position = opening.end()
        if name := opening["name"]:
            closer = f"\\end{{{name}}}"
        elif bracket := opening["bracket"]:
            closer = "\\]" if bracket == "[" else "\\)"
        else:
            closer = "$$" if opening["dollars"] else "$"
        end = -1 if closer in missing else text.find(closer, position)
        if end < 0:
            missing.add(closer)
            continue
        position = end + len(closer)
        pieces += [
            text[start : opening.start()],
            " ".join(text[opening.start() : position].split()),
        ]
        start = position
    return "".join([*pieces, text[start:]])


def _last_tagged(text: str) -> str | None:
    """Return the inside of the last `<answer>...</answer>`, in any case."""
    # Lower-casing may lengthen other scripts' letters: positions must stay those of the text.
    lowered = text.lower()
    if len(lowered) != len(text):
        lowered = "".join(c.lower() if c.isascii() else c for c in text)
    end = lowered.rfind("</answer>")
    start = lowered.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end] if start >= 0 else None


def _last_boxes(text: str) -> tuple[int, str] | None:
    """Return where the last boxes that belong together end, and their insides with commas."""
    run, last = "", 0
    stop = len(text)
    for number, box in enumerate(reversed(list(_BOX.finditer(text)))):
        end = _closing(text, box.end())
        if end is None or end >= stop or number >= _MOST_BOXES:
            break
        inside = " ".join(text[box.end() : end].split())
        between = text[end + 1 : stop] if run else ""
        if run and not _joins(between):
            break
        if inside and run:
            run = f"{inside}{':' if between.strip(' $') == ':' else ', '}{run}"
        elif inside:
            run, last = inside, end
        stop = box.start()
    return (last, run) if run else None


def _joins(between: str) -> bool:
    """Return whether the text between two boxes makes them one answer."""
    if len(between) > _MOST_BETWEEN:
        return False
    words = _NO_WORDS.sub(" ", between)
    if not re.search(r"\w", words):
        return not re.search(r"[^\s.,;:/|]", words)
    return _JOINING.search(words) is not None and _TURNING.search(words) is None


def _closing(text: str, begin: int) -> int | None:
    """Return where the brace opened just before `begin` closes."""
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, begin):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    return None
