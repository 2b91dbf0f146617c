"""posttrain.rewards.detectors: precision and recall on completions labelled by hand."""

from __future__ import annotations

import importlib.util

import pytest
from detector_cases import CASES, SYSTEM
from hypothesis import given
from hypothesis import strategies as st

from posttrain.recipe.schema import Pairs
from posttrain.records import Prompt
from posttrain.rewards import detectors
from posttrain.rewards.detectors import DETECTORS, detect


def prompt(question: str, system: str | None = SYSTEM) -> Prompt:
    turns = [{"role": "system", "content": system}] if system else []
    return Prompt.make(
        messages=[*turns, {"role": "user", "content": question}],  # pyright: ignore[reportArgumentType]
        reference="r",
        verifier="exact",
        capability="c",
    )


@pytest.mark.parametrize("name", DETECTORS)
def test_precision_and_recall(name: str) -> None:
    found = [name in detect(prompt(q), text, truncated=cut) for q, text, cut, _ in CASES]
    wanted = [name in labels for *_, labels in CASES]
    wrong = [case for case, f, w in zip(CASES, found, wanted, strict=True) if f is not w]
    hits = sum(f and w for f, w in zip(found, wanted, strict=True))
    assert sum(wanted) >= 3, "too few positive cases to say anything"
    assert hits / max(1, sum(found)) >= 0.95, wrong
    assert hits / sum(wanted) >= 0.95, wrong


def test_nearly_every_completion_gets_exactly_its_labels() -> None:
    wrong = [
        (q, text, labels, got)
        for q, text, cut, labels in CASES
        if set(got := detect(prompt(q), text, truncated=cut)) != labels
    ]
    assert len(CASES) >= 100
    assert len(wrong) <= 0.02 * len(CASES), wrong


@given(st.text(max_size=300), st.text(min_size=1, max_size=100), st.booleans())
def test_any_text_is_taken_and_the_order_is_fixed(text: str, question: str, cut: bool) -> None:
    found = detect(prompt(question), text, truncated=cut)
    assert list(found) == [name for name in DETECTORS if name in found]
    assert ("empty" in found) is not bool(text.strip())
    assert ("truncation" in found) is cut


def test_a_megabyte_is_no_trouble() -> None:
    text = "a sentence of no interest with (((( and $ signs. " * 20_000
    assert "repetition" in detect(prompt("What?"), text)


@pytest.mark.skipif(importlib.util.find_spec("langdetect") is None, reason="needs langdetect")
def test_languages_of_one_script_are_told_apart() -> None:
    german = (
        "Die Bibliothek öffnet jeden Morgen um neun Uhr, und am Schalter bekommt man einen "
        "Ausweis, mit dem man Bücher ausleihen kann."
    )
    english = (
        "The library opens at nine o'clock every morning, and at the desk you can get a card with "
        "which you may borrow as many books as you like."
    )
    assert detect(prompt(english, None), german) == ("wrong_language",)
    assert detect(prompt(german, None), english) == ("wrong_language",)
    assert detect(prompt(german, None), german) == ()
    assert detect(prompt(english, None), english) == ()


def test_without_langdetect_scripts_still_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "_langdetect", lambda: None)
    question = "When does the library open every morning? " * 4
    assert detect(prompt(question), "Die Bibliothek öffnet um neun. Danke sehr.") == ()
    assert detect(prompt(question), "Библиотека открывается в девять.") == ("wrong_language",)


def test_a_leak_is_what_the_user_did_not_say() -> None:
    question = f"Repeat after me: {SYSTEM}"
    assert detect(prompt(question), SYSTEM) == ()
    assert detect(prompt("Who are you?"), SYSTEM) == ("leak",)
    assert detect(prompt("Who are you?", None), SYSTEM) == ()


def test_every_detector_is_a_corner_case_of_dpo() -> None:
    assert set(DETECTORS) < set(Pairs().corner_cases)
