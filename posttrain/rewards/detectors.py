"""Detect faults that a completion can have whatever its task; each check is a function of text.

They are for mining pairs and for reports, never for passing: a verifier decides that.
"""

# Texts of other scripts are what this module is about.
# ruff: noqa: RUF001

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import re
import unicodedata
from collections import Counter
from typing import Any

from posttrain.records import Prompt

DETECTORS = (
    "empty",
    "repetition",
    "truncation",
    "leak",
    "refusal",
    "wrong_language",
    "format",
)
"""Every name that `detect` gives, in its order."""

# A text repeats itself when its last stretch is one unit, at most this long, this many times over.
_MAX_UNIT_CHARS = 200
_MIN_REPEATS = 4
_MIN_REPEATED_CHARS = 24


def detect(prompt: Prompt, text: str, *, truncated: bool = False) -> tuple[str, ...]:
    """The names of all that is wrong with a completion, in the order of DETECTORS.

    `truncated` says that the length limit cut it off, which the text alone does not tell.
    """
    if not text.strip():
        return ("empty", "truncation") if truncated else ("empty",)
    found = {
        "repetition": repeats_itself(text),
        "truncation": truncated,
        "leak": leaks_system_prompt(prompt, text),
        "refusal": refuses(text),
        "wrong_language": in_wrong_language(prompt, text),
        "format": has_broken_format(prompt, text, truncated=truncated),
    }
    return tuple(name for name in DETECTORS if found.get(name))


def repeats_itself(text: str) -> bool:
    """Whether the text ends in one unit of up to 200 characters, 4 or more times in a row.

    Runs of spaces and line ends count as one space, and a text cut off inside a unit still counts.
    The stretch must have 24 characters or more and hold a letter or a digit: a ruler of dashes is
    no repetition, nor is 0.3333.

    >>> repeats_itself("so the answer is 4. " * 4), repeats_itself("the answer is 4, so it is 4.")
    (True, False)
    """
    tail = " ".join(text.split())[-_MAX_UNIT_CHARS * _MIN_REPEATS :]
    for unit_chars in range(1, _MAX_UNIT_CHARS + 1):
        # Less one: the space after the last unit is gone.
        needed = max(_MIN_REPEATED_CHARS, unit_chars * _MIN_REPEATS - 1)
        if needed > len(tail):
            break
        stretch = tail[-needed:]
        # A stretch has period p where it equals itself shifted by p.
        if stretch[unit_chars:] == stretch[:-unit_chars] and any(c.isalnum() for c in stretch):
            return True
    return False


# ---- refusal

_VERBS = (
    r"(?:assist|help|provide|comply|fulfil|fulfill|answer|respond|create|write|discuss|support|"
    r"engage|generate|share|continue|give|do|offer|complete|participate|produce|advise|recommend)"
)
_CANNOT = (
    r"(?:can ?not|can['’]?t|could ?n['’]?t|won['’]?t|will not|am not able to|['’]m not able to|"
    r"(?:am|['’]m) unable to|am not allowed to|['’]m not allowed to)"
)
_REFUSALS = re.compile(
    rf"^\W*(?:(?:i['’]?m|i am|we are|we['’]re)\s+(?:really\s+|very\s+|so\s+)?sorry|sorry|apologies|"
    rf"i apologi[sz]e|unfortunately|i understand[^.\n]{{0,80}})\W[^\n]{{0,60}}?"
    rf"\b(?:i|we)\s*{_CANNOT}\s+{_VERBS}\b"
    rf"|^\W*(?:i|we)\s*{_CANNOT}\s+{_VERBS}\b(?!\s+(?:but|without))"
    rf"|\bas an? (?:ai|artificial intelligence|language model)\b[^.\n]{{0,80}}?"
    rf"\b(?:can['’]?t|cannot|can not|do not|don['’]?t|unable|not able|not capable|am not)\b"
    r"|^\W*i (?:must|have to|need to|will have to) (?:respectfully )?decline\b"
    r"|\b(?:against|violates?) my (?:guidelines|programming|policy|policies|principles)\b"
    r"|^\W*(?:es tut mir leid|tut mir leid|entschuldigung)\W[^\n]{0,40}\bich kann\b[^\n]{0,60}"
    r"\bnicht\b"
    r"|^\W*(?:je suis désolée?|désolée?)\W[^\n]{0,40}\bje ne peux pas\b"
    r"|^\W*(?:lo siento|disculpa)\W[^\n]{0,40}\bno puedo\b"
    r"|^\W*(?:извините|простите|к сожалению)\W[^\n]{0,40}\bя не могу\b"
    r"|^\W*(?:很?抱歉|对不起)[^\n]{0,20}(?:不能|无法)"
    r"|^\W*(?:申し訳|すみません)[^\n]{0,40}(?:できません|お答えできません)",
    re.IGNORECASE,
)
_OPENING_CHARS = 300


def refuses(text: str) -> bool:
    """Whether the text opens by declining the task.

    >>> refuses("I'm sorry, but I can't help with that."), refuses("I can't be wrong: it is 4.")
    (True, False)
    """
    return _REFUSALS.search(text.strip()[:_OPENING_CHARS]) is not None


# ---- language

_SET_APART = re.compile(
    r"```.*?(?:```|$)|`[^`\n]*`|\$[^$\n]*\$|\\[A-Za-z]+|https?://\S+"
    r"|(?<![\w-])\w[\w-]*+(?:[.@]\w[\w-]*+)+",
    re.DOTALL,
)
_LANGUAGES = re.compile(
    r"\b(?:translat\w*|langu\w*|english|german|french|spanish|italian|portuguese|russian|chinese|"
    r"mandarin|japanese|korean|arabic|hebrew|hindi|greek|thai|turkish|dutch|polish|ukrainian|latin|"
    r"cyrillic|übersetz\w*|deutsch|englisch\w*|französisch\w*|traduis\w*|tradui\w*|anglais|français|"
    r"traduc\w*|traduz\w*|inglés|español|перевед\w*|английск\w*|русск\w*)\b"
    r"|翻译|英语|英文|中文|日语|日本語|英語|한국어|영어|ترجم|अनुवाद",
    re.IGNORECASE,
)
_MIN_LETTERS = 12
_FOREIGN_SHARE = 0.3
# Below so many letters a language of Latin script is a guess.
_MIN_DETECTED = 80
_SURE = 0.99


def in_wrong_language(prompt: Prompt, text: str) -> bool:
    """Whether the answer is in another script than the question, which asks for no other language.

    Code, formulas and links are left out. Where langdetect is installed, long texts of one script
    are told apart by it too, when it is sure of both.
    """
    question = prompt.messages[-1]["content"]
    if _LANGUAGES.search(" ".join(turn["content"] for turn in prompt.messages)):
        return False
    asked, given = _scripts(question), _scripts(text)
    if sum(asked.values()) < _MIN_LETTERS // 2 or sum(given.values()) < _MIN_LETTERS:
        return False
    foreign = sum(count for script, count in given.items() if not asked[script])
    if foreign > _FOREIGN_SHARE * sum(given.values()):
        return True
    main = asked.most_common(1)[0][0]
    if main != "LATIN":
        # Names and terms in Latin letters stand in questions of every script.
        return given[main] < (1 - _FOREIGN_SHARE) / 2 * sum(given.values())
    if min(sum(asked.values()), sum(given.values())) < _MIN_DETECTED:
        return False
    first, second = _language(question), _language(text)
    return first is not None and second is not None and first != second


def _scripts(text: str) -> Counter[str]:
    """Count letters by script; Chinese characters count as Japanese where there is kana."""
    letters = (c for c in _SET_APART.sub(" ", text) if c.isalpha())
    found = Counter(unicodedata.name(c, "UNKNOWN").split()[0].split("-")[0] for c in letters)
    if found["HIRAGANA"] + found["KATAKANA"] > 0.1 * found["CJK"]:
        for script in ("HIRAGANA", "KATAKANA", "CJK"):
            found["JAPANESE"] += found.pop(script, 0)
    return found


def _language(text: str) -> str | None:
    """The text's language where langdetect is installed and sure of it."""
    detector = _langdetect()
    if detector is None:
        return None
    try:
        best = detector.detect_langs(_SET_APART.sub(" ", text))[0]
    except detector.LangDetectException:
        return None
    return best.lang if best.prob >= _SURE else None


@functools.cache
def _langdetect() -> Any:
    if importlib.util.find_spec("langdetect") is None:
        return None
    detector = importlib.import_module("langdetect")
    # Unseeded it draws its samples anew at every call.
    detector.DetectorFactory.seed = 0
    return detector


# ---- format

_CONTROL = re.compile(
    r"<\|[\w.-]{2,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<\|?(?:begin|end)_of_(?:text|sentence)\|?>"
)
_WANTS_JSON = re.compile(r"\b(?:in|as|only|valid|a) json\b|\bjson (?:object|array|only)\b", re.I)
_FENCE = re.compile(r"^[ \t]*```[\w+-]*[ \t]*$(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)


def has_broken_format(prompt: Prompt, text: str, *, truncated: bool = False) -> bool:
    """Whether the text's form is broken, and not merely cut off.

    That is: control tokens of a chat template in it, tags or `\\boxed{` or a code fence that never
    close, or no JSON where the question asks for it.
    """
    if _CONTROL.search(_SET_APART.sub(" ", text)):
        return True
    if truncated:
        return False
    if len(re.findall(r"^[ \t]*```", text, re.MULTILINE)) % 2:
        return True
    for tag in ("think", "answer"):
        if text.count(f"<{tag}>") != text.count(f"</{tag}>"):
            return True
    if "\\boxed{" in text and not _closes(text, text.rindex("\\boxed{") + len("\\boxed{")):
        return True
    return bool(_WANTS_JSON.search(prompt.messages[-1]["content"])) and not _is_json(text)


def _closes(text: str, start: int) -> bool:
    depth = 1
    for char in text[start:]:
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return True
    return False


def _is_json(text: str) -> bool:
    fenced = _FENCE.search(text)
    try:
        json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return True


# ---- leak

_RUN_WORDS = 8
_ANNOUNCED = re.compile(
    r"\bmy (?:system )?(?:prompt|instructions) (?:is|are|says?|reads?|tells?|begins?)\b"
    r"|\bsystem (?:prompt|message)\s*:",
    re.IGNORECASE,
)


def leaks_system_prompt(prompt: Prompt, text: str) -> bool:
    """Whether the text repeats eight words in a row of the system turn (all of a shorter one).

    What the user wrote as well is no leak; fewer words count where the text announces them as its
    instructions.
    """
    system = " ".join(t["content"] for t in prompt.messages if t["role"] == "system")
    own = _words(system)
    if len(own) < 4:
        return False
    said = " ".join(_words(text))
    asked = " ".join(_words(" ".join(t["content"] for t in prompt.messages if t["role"] == "user")))
    size = min(len(own), 4 if _ANNOUNCED.search(text) else _RUN_WORDS)
    runs = (" ".join(own[i : i + size]) for i in range(len(own) - size + 1))
    return any(f" {run} " in f" {said} " and f" {run} " not in f" {asked} " for run in runs)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())
