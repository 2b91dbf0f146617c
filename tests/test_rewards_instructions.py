"""Verifier `instructions`: lm-eval's own checkers, called directly, are the oracle."""

from __future__ import annotations

import importlib.util
import json
import os
import random
from typing import Any

import pytest

from posttrain.errors import SetupError
from posttrain.records import Prompt
from posttrain.rewards import check_reference, instructions, verify
from posttrain.rewards.instructions import constraint_kinds

needs_checkers = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("lm_eval", "langdetect", "nltk")),
    reason="needs the extra instructions",
)

# One set of values for every kind, as IFEval's rows give them.
KWARGS: dict[str, dict[str, Any]] = {
    "keywords:existence": {"keywords": ["river", "stone"]},
    "keywords:frequency": {"keyword": "river", "frequency": 2, "relation": "at least"},
    "keywords:forbidden_words": {"forbidden_words": ["river", "sea"]},
    "keywords:letter_frequency": {"letter": "s", "let_frequency": 4, "let_relation": "less than"},
    "language:response_language": {"language": "de"},
    "length_constraints:number_sentences": {"num_sentences": 3, "relation": "at least"},
    "length_constraints:number_paragraphs": {"num_paragraphs": 2},
    "length_constraints:number_words": {"num_words": 12, "relation": "less than"},
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": 2, "nth_paragraph": 1, "first_word": "the",
    },
    "detectable_content:number_placeholders": {"num_placeholders": 1},
    "detectable_content:postscript": {"postscript_marker": "P.S."},
    "detectable_format:number_bullet_lists": {"num_bullets": 2},
    "detectable_format:number_highlighted_sections": {"num_highlights": 1},
    "detectable_format:multiple_sections": {"section_spliter": "Section", "num_sections": 2},
    "combination:repeat_prompt": {"prompt_to_repeat": "Write about a river."},
    "startend:end_checker": {"end_phrase": "That is all."},
    "change_case:capital_word_frequency": {"capital_frequency": 2, "capital_relation": "at least"},
}  # fmt: skip
PIECES = [
    "The river runs over the stone.", "the river and the river", "Ein Fluss fließt durch das Land.",
    "\n\n", "\n", "***", "* one\n* two", "*bright*", "**bold**", "<<A title>>", "[address]",
    "P.S. more", "Section 1\nfirst\nSection 2\nsecond", "That is all.", "ALL CAPITAL WORDS",
    '{"a": 1}', '"quoted"', "My answer is yes.", "Write about a river.", "no commas here",
    "one, two, three", "sss", "******", "An old man sat by the sea. He slept. It rained.",
]  # fmt: skip

WHOLE = ["one *** two", "The first.\n\nThe second.", "Write about a river. It flows."]


def prompt(names: list[str], kwargs: list[dict[str, Any]], **more: Any) -> Prompt:
    return Prompt.make(
        messages=[{"role": "user", "content": "Write about a river."}],
        reference=json.dumps({"instruction_id_list": names, "kwargs": kwargs, **more}),
        verifier="instructions",
        capability="instructions",
    )


def responses(num: int) -> list[str]:
    rng = random.Random(3)
    made = [" ".join(rng.choices(PIECES, k=rng.randint(1, 6))) for _ in range(num)]
    made = [text for text in (*made, *PIECES, *WHOLE) if text.strip()]
    return made + [text.lower() for text in made[:10]] + [text.upper() for text in made[:10]]


@pytest.fixture(scope="module")
def direct() -> Any:
    """lm-eval's functions in this process, without a download, seeded as ours are."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        import langdetect
        from lm_eval.tasks.ifeval import utils
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before
    langdetect.DetectorFactory.seed = 0
    return utils


@needs_checkers
def test_every_kind_against_the_checkers_themselves(direct: Any) -> None:
    kinds = constraint_kinds()
    assert set(direct.instructions_registry.INSTRUCTION_DICT) == set(kinds)
    usable = [name for name, kind in kinds.items() if kind["unavailable"] is None]
    assert len(usable) >= 23
    texts = responses(25)
    both: set[str] = set()
    for name in usable:
        given = KWARGS.get(name, {})
        task = prompt([name], [given])
        assert check_reference(task) is None
        results: set[bool] = set()
        for text in texts:
            example = direct.InputExample(
                key=0, instruction_id_list=[name], prompt="Write about a river.", kwargs=[given]
            )
            strict = direct.test_instruction_following_strict(example, text)
            loose = direct.test_instruction_following_loose(example, text)
            outcome = verify(task, text)
            assert outcome.passed is strict.follow_all_instructions, (name, text)
            assert outcome.parts["loose"] == float(loose.follow_all_instructions), (name, text)
            results.add(strict.follow_all_instructions)
        if len(results) == 2:
            both.add(name)
    # The oracle is no oracle where it always says the same.
    assert len(both) >= len(usable) - 2, set(usable) - both


@needs_checkers
def test_several_constraints_pass_together_or_not_at_all() -> None:
    task = prompt(
        ["keywords:existence", "punctuation:no_comma", "startend:end_checker"],
        [{"keywords": ["river"]}, {}, {"end_phrase": "That is all."}],
        key=1001,
        prompt="as in IFEval's rows",
    )
    whole = verify(task, "A river runs here. That is all.")
    assert (whole.passed, whole.score, whole.why) == (True, 1.0, "all followed")
    part = verify(task, "A river, a stone. That is all.")
    assert part.passed is False
    assert part.score == pytest.approx(2 / 3)
    assert part.why == "not followed: punctuation:no_comma"
    assert part.parts["1 punctuation:no_comma"] == 0.0
    loose = verify(task, "Sure, here it is:\nA river runs here. That is all.")
    assert loose.passed is False
    assert loose.parts["loose"] == 1.0


@needs_checkers
def test_rows_with_empty_values_work_as_they_are() -> None:
    """The public rows give every key of every kind, null where it has no meaning."""
    nulls = dict.fromkeys((key for given in KWARGS.values() for key in given), None)
    task = prompt(["punctuation:no_comma"], [nulls])
    assert check_reference(task) is None
    assert verify(task, "no comma").passed is True


@needs_checkers
@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("", "no JSON"),
        ("[]", "no JSON object"),
        ('{"instruction_id_list": ["punctuation:no_comma"]}', "needs the lists"),
        ('{"instruction_id_list": [], "kwargs": []}', "at least one"),
        ('{"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}', "as many"),
        ('{"instruction_id_list": [3], "kwargs": [{}]}', "must hold texts"),
        ('{"instruction_id_list": ["punctuation:no_comma"], "kwargs": [3]}', "must hold objects"),
        ('{"instruction_id_list": ["no:such"], "kwargs": [{}]}', "lm-eval has no instruction"),
        ('{"instruction_id_list": ["keywords:existence"], "kwargs": [{}]}', "lacks keywords"),
        (
            '{"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"x": 1}]}',
            "does not take",
        ),
        (
            '{"instruction_id_list": ["language:response_language"], "kwargs": [{"language":"x"}]}',
            "does not take",
        ),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_malformed_reference(reference: str, why: str) -> None:
    task = Prompt.make(
        messages=[{"role": "user", "content": "?"}],
        reference=reference,
        verifier="instructions",
        capability="c",
    )
    assert why in str(check_reference(task))


@needs_checkers
def test_kinds_without_their_data_are_told_beforehand() -> None:
    unavailable = {name for name, kind in constraint_kinds().items() if kind["unavailable"]}
    assert unavailable <= {
        "length_constraints:number_sentences",
        "change_case:capital_word_frequency",
    }
    for name in unavailable:
        assert "nltk.downloader punkt_tab" in str(check_reference(prompt([name], [KWARGS[name]])))
        assert verify(prompt([name], [KWARGS[name]]), "One. Two.").passed is None


@needs_checkers
def test_a_broken_reference_is_undecided_not_failed() -> None:
    task = prompt(["no:such"], [{}])
    assert verify(task, "text").passed is None


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        instructions.importlib.util, "find_spec", lambda name: None if name == "nltk" else name
    )
    with pytest.raises(SetupError, match="needs nltk") as caught:
        check_reference(prompt(["punctuation:no_comma"], [{}]))
    assert "posttrain[instructions]" in caught.value.hint
