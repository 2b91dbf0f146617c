"""A user's own function as a verifier: forms, returns, failures, limits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from posttrain import progress
from posttrain.errors import RecipeError
from posttrain.records import Outcome, Prompt
from posttrain.rewards import check_reference, submit, submit_group, use_functions, verify
from posttrain.rewards.python import UserFunction


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    use_functions([])


def declare(folder: Path, source: str, name: str = "score", **keys: Any) -> str:
    """Write a file of rewards and use its function; the name that prompts give it."""
    file = folder / "mine.py"
    file.write_text(source)
    verifier = UserFunction(python=f"{file}:{name}", **keys)
    use_functions([verifier])
    return verifier.name


def prompt(verifier: str, reference: str = "4", **columns: Any) -> Prompt:
    return Prompt.make(
        messages=[{"role": "user", "content": "2 + 2?"}],
        reference=reference,
        verifier=verifier,
        capability="c",
        meta={"columns": columns},
    )


def outcome_of(folder: Path, body: str, text: str = "4", **keys: Any) -> Outcome:
    """The outcome where `score(completion, reference)` has this body."""
    source = f"def score(completion, reference):\n    {body}\n"
    return verify(prompt(declare(folder, source, **keys)), text)


@pytest.mark.parametrize(
    ("body", "text", "passed", "score", "kind"),
    [
        ("return completion == reference", "4", True, 1.0, "passed"),
        ("return completion == reference", "5", False, 0.0, "wrong"),
        ("return 1", "4", True, 1.0, "passed"),
        ("return 0.7", "4", False, 0.7, "below_threshold"),
        ("return -3.0", "4", False, 0.0, "below_threshold"),
        ("import numpy; return numpy.bool_(True)", "4", True, 1.0, "passed"),
        ("import numpy; return numpy.float32(0.25)", "4", False, 0.25, "below_threshold"),
        ("import numpy; return numpy.float64(1)", "4", True, 1.0, "passed"),
        ("import numpy; return numpy.array([1.0, 0.0])", "4", None, 0.0, "verifier_failed"),
        ("return None", "4", None, 0.0, "verifier_failed"),
    ],
)
def test_a_return_value_gives_its_outcome(
    tmp_path: Path, body: str, text: str, passed: bool | None, score: float, kind: str
) -> None:
    outcome = outcome_of(tmp_path, body, text)
    assert (outcome.passed, outcome.score, outcome.kind) == (passed, score, kind)


def test_a_number_passes_from_the_threshold_on(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, "return 0.7", threshold=0.5)
    assert (outcome.passed, outcome.score, outcome.parts) == (True, 0.7, {"returned": 0.7})
    assert outcome.why == "returned 0.7, passes from 0.5"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("return float('nan')", "returned nan"),
        ("return float('inf')", "returned inf"),
        ("return 'yes'", "returned a str ('yes')"),
        ("return [1.0]", "returned a list ([1.0])"),
        ("return {'score': 1}", "returned a dict"),
        ("return 10 ** 400", "returned a int (1000"),
        ("return 1j", "returned a complex"),
        ("return lambda: True", "returned a function"),
        ("return object", "returned a type"),
        ("return None", "returned None"),
        (
            "from posttrain.records import Outcome; return Outcome(passed=1, score=7.0, why='')",
            "returned an Outcome with a field of the wrong type",
        ),
    ],
)
def test_what_is_no_result_is_undecided_in_words(tmp_path: Path, body: str, why: str) -> None:
    outcome = outcome_of(tmp_path, body)
    assert (outcome.passed, outcome.kind) == (None, "verifier_failed")
    assert outcome.why.startswith(why)


def test_an_outcome_is_taken_as_it_is(tmp_path: Path) -> None:
    body = (
        "from posttrain.records import Outcome; "
        "return Outcome(passed=False, score=0.5, why='half', parts={'a': 0.5}, kind='too_long')"
    )
    outcome = outcome_of(tmp_path, body)
    assert (outcome.passed, outcome.score, outcome.why) == (False, 0.5, "half")
    assert (outcome.parts, outcome.kind) == ({"a": 0.5}, "too_long")


def test_the_fields_of_an_outcome_may_be_numpys(tmp_path: Path) -> None:
    body = (
        "from posttrain.records import Outcome; import numpy as np; return Outcome("
        "passed=np.bool_(True), score=np.float32(0.5), why='w', parts={'a': np.float64(2)})"
    )
    outcome = outcome_of(tmp_path, body)
    assert (outcome.passed, outcome.score, outcome.parts) == (True, 0.5, {"a": 2.0})


def test_arguments_are_passed_by_name(tmp_path: Path) -> None:
    source = """
def score(answer, *, prompt, reference, topic, weight=2, absent="none"):
    return [answer, prompt[-1]["content"], reference, topic, weight, absent] == [
        "said", "2 + 2?", "4", {"name": "sums"}, 3, "none"]
"""
    name = declare(tmp_path, source)
    asked = prompt(name, topic={"name": "sums"}, weight=3, other=1)
    assert verify(asked, "said").passed is True
    assert check_reference(asked) is None
    assert check_reference(prompt(name)) == "the row has no column topic"


def test_keyword_arguments_take_every_column(tmp_path: Path) -> None:
    given = ["a", "b", "prompt", "reference"]
    source = f"def score(completion, **kwargs):\n    return sorted(kwargs) == {given}"
    assert verify(prompt(declare(tmp_path, source), a=1, b=2), "x").passed is True


@pytest.mark.parametrize("first", ["answer", "completion"])
def test_a_column_called_like_the_completion_does_not_stand_in_its_way(
    tmp_path: Path, first: str
) -> None:
    source = f"def score({first}, **kwargs):\n    return {first} == 'said' and kwargs['a'] == 1"
    asked = prompt(declare(tmp_path, source), a=1, **{first: "the column's"})
    assert verify(asked, "said").passed is True


def test_async_functions_are_awaited(tmp_path: Path) -> None:
    source = """
import asyncio
async def score(completion, reference):
    await asyncio.sleep(0.01)
    return completion == reference
async def many(completions: list[str], reference):
    await asyncio.sleep(0.01)
    return [c == r for c, r in zip(completions, reference)]
"""
    assert verify(prompt(declare(tmp_path, source)), "4").passed is True
    assert verify(prompt(declare(tmp_path, source, "many")), "5").passed is False


def test_a_callable_object_will_do(tmp_path: Path) -> None:
    source = """
class Scorer:
    def __call__(self, completion, reference):
        return completion == reference
score = Scorer()
"""
    assert verify(prompt(declare(tmp_path, source)), "4").passed is True


def test_modules_beside_the_file_are_imported(tmp_path: Path) -> None:
    (tmp_path / "helper_of_mine.py").write_text("RIGHT = '4'\n")
    source = (
        "from helper_of_mine import RIGHT\ndef score(completion):\n    return completion == RIGHT"
    )
    assert verify(prompt(declare(tmp_path, source)), "4").passed is True


# ---- the batch form


def test_the_completions_of_a_prompt_come_in_one_call(tmp_path: Path) -> None:
    source = """
calls = 0
def score(completions: list[str], prompts, topic, **kwargs):
    global calls
    calls += 1
    assert topic == ["sums"] * 3 and kwargs["reference"] == ["4"] * 3 and len(prompts) == 3
    return [len(c) / 10 + calls for c in completions]
"""
    asked = prompt(declare(tmp_path, source, threshold=1.2), topic="sums")
    answers = [("a", False), ("", False), ("bb", False), ("cut", True), ("ccc", False)]
    found = [future.result() for future in submit_group(asked, answers)]
    assert [o.passed for o in found] == [False, False, True, False, True]
    assert [o.parts.get("returned") for o in found] == [1.1, None, 1.2, None, 1.3]
    assert [found[1].kind, found[3].kind] == ["empty", "truncated"]


@pytest.mark.parametrize(
    ("result", "why"),
    [
        ("[1.0]", "returned 1 results for 2 completions"),
        ("1.0", "returned a float (1.0) in place of a list"),
        ("None", "returned a NoneType"),
    ],
)
def test_a_batch_of_another_length_is_undecided(tmp_path: Path, result: str, why: str) -> None:
    name = declare(tmp_path, f"def score(completions):\n    return {result}")
    for future in submit_group(prompt(name), [("a", False), ("b", False)]):
        assert future.result().passed is None
        assert future.result().why.startswith(why)


def test_a_batch_with_bad_members_keeps_the_good_ones(tmp_path: Path) -> None:
    name = declare(tmp_path, "def score(completions):\n    return [1.0, None, float('nan')]")
    answers = [("a", False), ("b", False), ("c", False)]
    found = [future.result().passed for future in submit_group(prompt(name), answers)]
    assert found == [True, None, None]


@pytest.mark.parametrize(
    ("function", "text", "columns", "passed"),
    [
        ("accuracy_reward", r"So \boxed{\frac{1}{3}}", {"solution": r"$\frac{1}{3}$"}, True),
        ("accuracy_reward", r"So \boxed{\frac{1}{2}}", {"solution": r"$\frac{1}{3}$"}, False),
        ("accuracy_reward", r"So \boxed{4}", {"solution": "because the cat sat"}, None),
        ("think_format_reward", "<think>\nHm.\n</think>\n4", {}, True),
        ("think_format_reward", "<think>\nHm.\n4", {}, False),
    ],
)
def test_trls_own_rewards_are_taken_as_they_are(
    function: str, text: str, columns: dict[str, Any], passed: bool | None
) -> None:
    verifier = UserFunction(python=f"trl.rewards:{function}", wall_seconds=60.0)
    use_functions([verifier])
    assert verify(prompt(verifier.name, **columns), text).passed is passed


# ---- failures


def test_an_exception_is_undecided_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(progress, "note", told.append)
    monkeypatch.setattr("posttrain.rewards.python.note", told.append)
    source = """
def helper(text):
    return {}[text]
def score(completion):
    return helper(completion)
"""
    name = declare(tmp_path, source)
    outcomes = [verify(prompt(name), "4") for _ in range(2)]
    for outcome in outcomes:
        assert (outcome.passed, outcome.kind) == (None, "verifier_failed")
        lines = outcome.why.splitlines()
        assert lines[0] == "raised KeyError: '4'"
        frames = [line.strip() for line in lines if line.strip().startswith("File")]
        assert [frame.rpartition(" ")[2] for frame in frames] == ["score", "helper"]
    (once,) = told
    assert "mine.py:score raised, and its answers are undecided" in once
    assert "return {}[text]" in once


def test_a_batch_that_raises_leaves_all_of_it_undecided(tmp_path: Path) -> None:
    name = declare(tmp_path, "def score(completions):\n    return 1 / 0")
    for future in submit_group(prompt(name), [("a", False), ("b", False)]):
        assert future.result().why.startswith("raised ZeroDivisionError")


def test_a_function_that_hangs_is_ended_and_the_next_call_works(tmp_path: Path) -> None:
    source = """
import time
def score(completion):
    while completion == "hang": pass
    if completion == "sleep": time.sleep(60)
    return True
"""
    name = declare(tmp_path, source, wall_seconds=1.0)
    assert verify(prompt(name), "quick").passed is True
    for text in ("hang", "sleep"):
        outcome = verify(prompt(name), text)
        assert (outcome.passed, outcome.kind) == (None, "timeout")
        assert outcome.seconds < 10
    assert verify(prompt(name), "quick").passed is True


def test_a_call_has_its_memory_beyond_that_of_the_import(tmp_path: Path) -> None:
    source = """
held = bytearray(200 * 2**20)
def score(completion):
    return len(bytearray(int(completion) * 2**20)) > 0
"""
    name = declare(tmp_path, source, memory_mib=128)
    assert verify(prompt(name), "20").passed is True
    outcome = verify(prompt(name), "300")
    assert (outcome.passed, outcome.kind) == (None, "out_of_memory")
    assert "raised MemoryError" in outcome.why


def test_what_a_function_leaks_ends_with_its_process(tmp_path: Path) -> None:
    source = """
kept = []
def score(completion):
    kept.append(bytearray(60 * 2**20))
    return True
"""
    asked = prompt(declare(tmp_path, source, memory_mib=128))
    found = [verify(asked, "4") for _ in range(7)]
    assert [outcome.passed for outcome in found] == [True, True, None, True, True, None, True]
    assert found[2].kind == "out_of_memory"


def test_what_a_function_prints_is_for_the_user_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = declare(tmp_path, "def score(c):\n    print('told', flush=True)\n    return True")
    assert verify(prompt(name), "4").passed is True
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    "way",
    [
        "os._exit(1)",
        "os.kill(os.getpid(), 9)",
        "sys.exit('out')",
        "exec('raise KeyboardInterrupt')",
    ],
)
def test_a_function_that_ends_its_process_is_undecided(tmp_path: Path, way: str) -> None:
    name = declare(
        tmp_path,
        f"import os, sys\ndef score(c):\n    {way} if c == 'end' else None\n    return True",
    )
    outcome = verify(prompt(name), "end")
    assert outcome.passed is None
    assert outcome.kind in ("verifier_crashed", "verifier_failed")
    assert verify(prompt(name), "go on").passed is True


def test_own_code_has_the_environment_and_may_write_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "secret")
    mark = tmp_path / "mark"
    source = f"""
import os
def score(completion):
    open({str(mark)!r}, "w").write("x" * 5000)
    return os.environ["MY_API_KEY"] == "secret"
"""
    assert verify(prompt(declare(tmp_path, source)), "x").passed is True
    assert mark.stat().st_size == 5000


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import no_such_package_here\ndef score(c): return True", "No module named"),
        ("def score(c: return", "SyntaxError"),
        ("other = 1", "has no attribute 'score'"),
        ("score = 1", "not a function, but of type int"),
        ("class score:\n    pass", "not a function, but of type type"),
        ("def score(*, reference): return True", "takes no completion"),
        ("raise SystemExit('no')", "SystemExit: no"),
    ],
)
def test_a_file_that_does_not_load_is_the_recipes_mistake(
    tmp_path: Path, source: str, error: str
) -> None:
    with pytest.raises(RecipeError, match=r"mine\.py:score") as caught:
        submit(prompt(declare(tmp_path, source)), "4")
    assert error in caught.value.message
    assert "python -c" in caught.value.hint


def test_two_that_differ_cannot_have_one_name(tmp_path: Path) -> None:
    one = UserFunction(python=f"{tmp_path}/a/mine.py:score")
    other = UserFunction(python=f"{tmp_path}/b/mine.py:score")
    use_functions([one, one])
    with pytest.raises(RecipeError, match=r"two functions are called mine\.py:score"):
        use_functions([one, other])


def test_a_function_that_no_recipe_names_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\ndef score(c): return True")
    with pytest.raises(ValueError, match="is a function, and nothing here names its file"):
        verify(prompt(f"{file}:score"), "4")
    assert not (tmp_path / "ran").exists()


def test_a_name_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    verifier = UserFunction.from_name("sub/mine.py:score >= 0.5")
    assert verifier.python == f"{os.path.realpath(tmp_path)}/sub/mine.py:score"
    assert (verifier.name, verifier.threshold) == ("mine.py:score >= 0.5", 0.5)
    assert (
        UserFunction.from_name("trl.rewards:accuracy_reward").name == "trl.rewards:accuracy_reward"
    )


@pytest.mark.parametrize("target", ["mine.py", "mine:", ":score", "a b.c:score", "mine.py:f()"])
def test_a_target_has_a_place_and_a_name(target: str) -> None:
    with pytest.raises(ValidationError, match=r"write file\.py:name or package\.module:name"):
        UserFunction(python=target)
