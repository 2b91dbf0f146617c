"""A user's function by its source: found, followed and checked without being run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.rewards.python_source import BadFunction, find_function, form_of


def write(folder: Path, source: str, name: str = "mine.py") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    return file


def test_a_function_is_found_without_running_its_file(tmp_path: Path) -> None:
    file = write(tmp_path, "raise SystemExit\ndef score(completion): return True\n")
    assert find_function("mine.py:score", tmp_path).files == [file]
    assert find_function(f"{file}:score", Path("/")).files == [file]


@pytest.mark.parametrize(
    "source",
    [
        "async def score(completion): ...",
        "score = lambda completion: True",
        "from elsewhere import score",
        "from elsewhere import other as score",
        "from elsewhere import *",
        "try:\n    from fast import score\nexcept ImportError:\n    def score(completion): ...",
        "if True:\n    def score(completion): ...",
        "a, score = make()",
        "score: object = make()",
        "@wrapped\ndef score(): ...",
    ],
)
def test_every_way_to_bind_a_name_counts(tmp_path: Path, source: str) -> None:
    file = write(tmp_path, source)
    assert find_function("mine.py:score", tmp_path).files == [file]


@pytest.mark.parametrize(
    ("target", "message", "suggestion"),
    [
        ("mien.py:score", "no such file: ", "mine.py:score"),
        ("mine.py:scor", "mine.py has no function scor; it has score, other", "mine.py:score"),
        ("mine.py:Kind", "Kind is a class", None),
        ("broken.py:score", "broken.py:1: ", None),
        ("no.such.module:score", "no module no.such.module can be imported here", None),
        ("sub.own:score", "no module sub.own can be imported here", "sub/own.py:..."),
        ("mine.py:empty", "mine.py:4: empty takes no completion: write def score(", None),
        ("mine.py:keyword", "mine.py:5: keyword takes no completion", None),
        ("mine.py:ids", "mine.py:6: ids needs completion_ids, which only TRL's trainer has", None),
        ("mine.py:hidden", "mine.py:7: hidden reference cannot be passed by name", None),
    ],
)
def test_what_cannot_be_called_is_named(
    tmp_path: Path, target: str, message: str, suggestion: str | None
) -> None:
    write(tmp_path, "def broken(:", "broken.py")
    write(tmp_path, "def score(completion): ...", "sub/own.py")
    write(
        tmp_path,
        "def score(completion): ...\ndef other(c): ...\nclass Kind: ...\ndef empty(): ...\n"
        "def keyword(*, reference): ...\ndef ids(completions, completion_ids): ...\n"
        "def hidden(completion, reference, /): ...\n",
    )
    with pytest.raises(BadFunction) as caught:
        find_function(target, tmp_path)
    assert caught.value.message.startswith(message)
    assert caught.value.suggestion == suggestion


def test_the_modules_beside_a_file_belong_to_it(tmp_path: Path) -> None:
    own = write(tmp_path, "import json, one\nfrom two.deep import x\ndef score(completion): ...")
    one = write(tmp_path, "import mine, three", "one.py")
    three = write(tmp_path, "", "three.py")
    deep = write(tmp_path, "", "two/deep.py")
    write(tmp_path, "", "unused.py")
    assert find_function("mine.py:score", tmp_path).files == [own, one, three, deep]


def test_submodules_packages_and_relative_imports_belong_to_it_too(tmp_path: Path) -> None:
    write(tmp_path, "from helpers import maths\ndef score(completion): ...")
    write(tmp_path, "", "helpers/unused.py")
    package = write(tmp_path, "from .more import x", "helpers/__init__.py")
    maths = write(tmp_path, "from . import deep", "helpers/maths.py")
    more = write(tmp_path, "", "helpers/more.py")
    deep = write(tmp_path, "", "helpers/deep.py")
    own, *rest = find_function("mine.py:score", tmp_path).files
    assert own == tmp_path / "mine.py"
    assert sorted(rest) == sorted([package, maths, more, deep])


def test_a_re_export_leads_to_the_file_that_defines_it() -> None:
    (file,) = find_function("trl.rewards:accuracy_reward", Path()).files
    assert file.name == "accuracy_rewards.py"
    with pytest.raises(BadFunction, match="has no function accuracy_rewrad"):
        find_function("trl.rewards:accuracy_rewrad", Path())


def test_a_module_of_the_standard_library_is_found_without_import() -> None:
    (file,) = find_function("json.decoder:py_scanstring", Path()).files
    assert file.name == "decoder.py"


def single(completion: str, reference: str, *, prompt: Any, topic: str, weight: int = 1) -> bool:
    return True


def positional(text: str, /, **columns: Any) -> bool:
    return True


def named(reference: str, completion: str) -> bool:
    return True


def batch(completions: list[str], solution: Any, log_extra: Any = None) -> list[float]:
    return []


def chats(prompts: Any, completions: list[list[dict[str, str]]], **kwargs: Any) -> list[float]:
    return []


@pytest.mark.parametrize(
    ("function", "form"),
    [
        (single, (False, True, False, ("topic", "weight"), ["topic"])),
        (positional, (False, False, False, None, [])),
        (named, (False, True, False, (), [])),
        (batch, (True, False, True, ("solution",), ["solution"])),
        (chats, (True, False, False, None, [])),
    ],
)
def test_a_signature_gives_its_form(function: Callable[..., Any], form: tuple[Any, ...]) -> None:
    found = form_of(inspect.signature(function))
    assert (found.is_batch, found.by_name, found.as_texts, found.columns, found.required) == form
