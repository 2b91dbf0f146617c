"""posttrain.rewards: what passes, what fails, and what could not be decided."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import SetupError
from posttrain.records import Prompt
from posttrain.rewards import VERIFIERS, check_reference, close_workers, verify, workers
from posttrain.rewards import math as math_verifier
from posttrain.rewards import reasoning_gym as gym
from posttrain.rewards.answers import as_number, brief, normalise
from posttrain.rewards.places import final_answer
from posttrain.rewards.reasoning_gym import decode, encode, is_formula


def make(verifier: str, reference: str, **meta: Any) -> Prompt:
    return Prompt.make(
        messages=[{"role": "user", "content": "?"}],
        reference=reference,
        verifier=verifier,
        capability="c",
        meta=meta,
    )


def gym_prompts(family: str, size: int = 2, **config: Any) -> list[Prompt]:
    return [
        make(
            "reasoning_gym", made["answer"] or "", family=family, config=config, entry=made["entry"]
        )
        for made in gym.make_entries(family, config, seed=7, size=size)
    ]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("12", "12"),
        (" 12\n", "12"),
        ("3*4 = 12\n#### 12", "12"),
        ("so \\boxed{\\frac{1}{2}} it is", "\\frac{1}{2}"),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{unclosed", "\\boxed{unclosed"),
        ("<answer> a b </answer>", "a b"),
        ("Work.\nAnswer: 12", "12"),
        ("Therefore, the final answer is: **12**", "12"),
        ("the answer is 12.", "12."),
        ("answerable: 12", "answerable: 12"),
        ("<answer>1</answer> or <ANSWER>2</ANSWER>", "2"),
        ("<answer>unclosed", "<answer>unclosed"),
        ("Answer:\n\n 12 ", "12"),
        ("#### 12  \r", "12"),
        ("#### ", "####"),
    ],
)
def test_final_answer(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [("1,250", "1250"), ("+3", "3"), ("-0.50", "-0.5"), (".5", "0.5"), ("$7$", "7"), ("12.", "12"),
     ("1,25", None), ("1e5", None), ("", None), ("-", None), ("3 4", None),
     ("٣", None), ("²", None), ("9" * 300, None)],
)  # fmt: skip
def test_as_number(text: str, value: str | None) -> None:
    assert as_number(text) == (None if value is None else Decimal(value))


@pytest.mark.parametrize("name", ["exact", "math", "choice"])
@pytest.mark.parametrize(
    "unit",
    ["\n", "\n\n a", "<answer>", "</answer>", "#### ", "#### a" + " " * 99, "answer: ", "\\boxed{",
     "answer is * _", "(", "a.a", "a-", "`", "$", "1 ", "A or ", "\u0130<answer>", "=", "{,}"],
)  # fmt: skip
def test_a_megabyte_is_read_in_linear_time(name: str, unit: str) -> None:
    """What is quadratic does not end: these run in this process, where no one kills them."""
    from posttrain.rewards.detectors import detect

    text = unit * (1_000_000 // len(unit)) + "b"
    prompt = make(name, "B" if name == "choice" else "b")
    assert verify(prompt, text).passed in (True, False, None)
    assert detect(prompt, text) is not None


def test_digits_of_other_scripts_are_numbers() -> None:
    assert verify(make("exact", "12"), "The answer is ١٢.").passed is True
    assert verify(make("exact", "१२"), "12").passed is True
    assert verify(make("exact", "12"), "١٣").passed is False


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_plain_integers_pass_exactly_when_equal(a: int, b: int) -> None:
    for name in ("exact", "math"):
        if name == "exact" or abs(a - b) > 0.001 * max(abs(a), abs(b)) or a == b:
            assert verify(make(name, str(a)), f"{b:,}").passed is (a == b)


@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(max_size=40), st.text(max_size=40))
def test_exact_never_raises_and_is_reflexive(reference: str, text: str) -> None:
    assert verify(make("exact", reference), text).passed in (True, False)
    if text.strip():
        assert verify(make("exact", text), text).passed is True


@pytest.mark.parametrize(
    ("reference", "text", "passed", "why"),
    [
        ("Paris", "  paris. ", True, "equal"),
        ("Paris", '"Paris"', True, "equal"),
        ("Paris", "The answer is Paris.", True, "equal"),
        ("a  b", "A b", True, "equal"),
        ("1250", "1,250.00", True, "equal"),
        ("12", "13", False, "expected 12, got 13"),
        ("12", "112", False, "expected 12, got 112"),
        ("Paris", "London " * 40, False, "expected Paris, got London"),
        ("12", "", False, "empty"),
        ("12", " \n ", False, "empty"),
    ],
)
def test_exact(reference: str, text: str, passed: bool, why: str) -> None:
    outcome = verify(make("exact", reference), text)
    assert outcome.passed is passed
    assert outcome.score == float(passed)
    assert outcome.why.startswith(why)
    assert len(outcome.why) < 160


@pytest.mark.parametrize("name", VERIFIERS)
def test_a_truncated_completion_fails_whatever_it_holds(name: str) -> None:
    outcome = verify(make(name, "4"), "4", truncated=True)
    assert (outcome.passed, outcome.why) == (False, "truncated")


@pytest.mark.parametrize(
    ("reference", "text", "passed"),
    [
        ("\\frac{1}{2}", "0.5", True),
        ("\\frac{1}{2}", "so \\boxed{\\frac{2}{4}}", True),
        ("1/2", "$\\frac{1}{2}$", True),
        ("x^2 + 2x + 1", "$(x+1)^2$", True),
        ("x^2 + 2x + 1", "$(x+2)^2$", False),
        ("2\\sqrt{2}", "\\sqrt{8}", True),
        ("72", "48/2 = 24, then 48 + 24 = 72.\n#### 72", True),
        ("72", "I get 72 clips altogether.", True),
        ("72", "I get 71 clips altogether.", False),
        ("72", "no idea", False),
        ("0.333333", "1/3", True),
        ("10,000", "10000", True),
    ],
)
def test_math(reference: str, text: str, passed: bool) -> None:
    outcome = verify(make("math", reference), text)
    assert outcome.passed is passed, outcome
    assert outcome.seconds > 0


def test_a_hanging_comparison_is_killed_and_the_next_one_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(math_verifier, "WALL_LIMIT", 1.0)
    verify(make("math", "x"), "x")  # so that the start is not in the time
    started = time.perf_counter()
    outcome = verify(make("math", "7"), "\\boxed{9^{9^{9^9}}}")
    assert (outcome.passed, outcome.why) == (None, "timeout after 1 s")
    assert time.perf_counter() - started < 5
    monkeypatch.undo()
    assert verify(make("math", "\\frac{1}{2}"), "0.5").passed is True


def idle_workers(kind: workers.WorkerKind) -> list[int]:
    return [worker.pid for worker in workers._crews[kind]._idle]  # pyright: ignore[reportPrivateUsage]


def test_a_worker_that_sleeps_or_dies_is_replaced() -> None:
    prompt = gym_prompts("chain_sum")[0]
    workers.ask(gym.WORKER, {"do": "families"}, seconds=60, patience=60)
    (first,) = idle_workers(gym.WORKER)
    slow = {"do": "make", "family": "chain_sum", "config": {}, "seed": 1, "size": 10**9}
    with pytest.raises(workers.WorkerFailure, match=r"timeout after 0\.5 s"):
        workers.ask(gym.WORKER, slow, seconds=0.5)
    workers.ask(gym.WORKER, {"do": "families"}, seconds=60, patience=60)
    (second,) = idle_workers(gym.WORKER)
    assert second != first
    wait_for_end(first)
    os.kill(second, signal.SIGKILL)
    wait_for_end(second)
    assert verify(prompt, prompt.reference).passed is True
    close_workers()
    assert verify(prompt, prompt.reference).passed is True


def test_a_server_that_died_is_replaced() -> None:
    prompt = gym_prompts("chain_sum")[0]
    server = workers._crews[gym.WORKER].server  # pyright: ignore[reportPrivateUsage]
    server._process.kill()  # pyright: ignore[reportPrivateUsage]
    server._process.wait()  # pyright: ignore[reportPrivateUsage]
    assert verify(prompt, prompt.reference).passed is True


def test_no_worker_outlives_its_parent() -> None:
    program = (
        "from posttrain.rewards import workers\n"
        "from posttrain.rewards.math import WORKER\n"
        "workers.ask(WORKER, {'do': 'parse', 'text': '1'}, seconds=60, patience=60)\n"
        "crew = workers._crews[WORKER]\n"
        "print(crew.server._process.pid, crew._idle[0].pid, flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    server, worker = map(int, done.stdout.split())
    wait_for_end(server)
    wait_for_end(worker)


def wait_for_end(pid: int) -> None:
    for _ in range(100):
        if not alive(pid):
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} lives on")


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    "family", ["chain_sum", "countdown", "knights_knaves", "rearc", "n_queens"]
)
def test_reasoning_gym_takes_its_own_answer_and_no_other(family: str) -> None:
    for prompt in gym_prompts(family):
        assert check_reference(prompt) is None
        assert verify(prompt, f" {prompt.reference}\n").passed is True
        assert verify(prompt, f"<answer>{prompt.reference}</answer>").passed is True
        wrong = verify(prompt, "surely not this")
        assert wrong.passed is False
        assert wrong.why.startswith("expected ")


def test_reasoning_gym_accepts_another_right_answer() -> None:
    prompt = gym_prompts("countdown", 1)[0]
    assert verify(prompt, f"0 + ({prompt.reference})").passed is False
    other = verify(prompt, f"({prompt.reference})")
    assert (other.passed, other.why) == (True, "accepted by the family")


def test_an_answer_that_a_scorer_chokes_on_fails() -> None:
    outcome = verify(gym_prompts("prime_factorization", 1)[0], "two times three")
    assert outcome.passed is False


def test_reasoning_gym_that_fails_is_undecided() -> None:
    for entry in ({"answer": "4"}, {"answer": None, "metadata": {}}):
        outcome = verify(make("reasoning_gym", "4", family="countdown", entry=entry), "4")
        assert outcome.passed in (None, False)
    outcome = verify(make("reasoning_gym", "4", family="no_such", entry={"answer": "4"}), "4")
    assert outcome.passed is None
    assert "no_such" in outcome.why


@pytest.mark.parametrize(
    "family", ["n_queens", "string_insertion", "binary_matrix", "spiral_matrix"]
)
def test_what_a_model_wrote_is_not_run_by_scorers_that_eval(family: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    attack = f"[__import__('os').system('mkdir {mark}')]"
    assert verify(gym_prompts(family, 1)[0], attack).passed is False
    assert not mark.exists()


@pytest.mark.parametrize("family", ["countdown", "puzzle24", "polynomial_multiplication"])
def test_what_a_model_wrote_is_not_run_by_scorers_that_parse(family: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    attack = f"__import__('os').system('mkdir {mark}')"
    assert verify(gym_prompts(family, 1)[0], attack).passed is False
    assert not mark.exists()


@pytest.mark.parametrize("text", ["3*(4-1)/2", "x**2 + 3*x", "sin(x)**2 + C", "1.5 * y"])
def test_formulas_are_formulas(text: str) -> None:
    assert is_formula(text)


@pytest.mark.parametrize(
    "text",
    [
        "x.subs(1)",
        "().__class__",
        "open(1)",
        "'a'",
        "eval(x)",
        "x . y",
        "[1]",
        "lambda x: x",
        "a_b",
    ],
)
def test_programs_are_no_formulas(text: str) -> None:
    assert not is_formula(text)


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(
            st.text(max_size=3) | st.integers() | st.just("$tuple"), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(values)
def test_entries_survive_json(value: Any) -> None:
    import json

    assert decode(json.loads(json.dumps(encode(value)))) == value


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (make("exact", " . "), None),
        (make("exact", ""), "the reference is empty"),
        (make("math", "72"), None),
        (make("math", "work\n#### 72"), None),
        (make("math", "\\frac{a}{b}"), None),
        (make("math", ""), "the reference is empty"),
        (make("math", "because the cat sat"), "no mathematical expression"),
        (make("reasoning_gym", "4"), "meta lacks family, entry"),
        (
            make("nosuch", "4"),
            "there is no verifier 'nosuch'; the verifiers are ",
        ),
    ],
)
def test_check_reference(prompt: Prompt, why: str | None) -> None:
    found = check_reference(prompt)
    assert found is None if why is None else why in str(found)


def test_an_unknown_verifier_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"did you mean math.*the verifiers are .*exact"):
        verify(make("maths", "4"), "4")


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    close_workers()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match="math_verify") as caught:
        verify(make("math", "x"), "y")
    assert caught.value.hint == "pip install math-verify"


def test_same_arguments_same_questions_in_another_process() -> None:
    # word_ladder and ransom_note walk over sets of strings: they differ under another hash seed.
    families = ["word_ladder", "ransom_note", "polynomial_multiplication", "chain_sum"]
    first = [gym.make_entries(family, {}, seed=5, size=3) for family in families]
    close_workers()
    assert [gym.make_entries(family, {}, seed=5, size=3) for family in families] == first
    assert gym.make_entries("chain_sum", {}, seed=6, size=3) != first[-1]


def test_a_family_refuses_its_configuration_in_its_own_words() -> None:
    with pytest.raises(ValueError, match="min_terms"):
        gym.make_entries("chain_sum", {"min_terms": 5, "max_terms": 2}, seed=0, size=1)


def test_importing_rewards_is_light() -> None:
    program = (
        "import sys; import posttrain.rewards; "
        "heavy = ('torch', 'sympy', 'math_verify', 'reasoning_gym', 'numpy'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@settings(max_examples=30)
@given(st.text(max_size=300))
def test_brief_is_one_short_line(text: str) -> None:
    line = brief(text)
    assert len(line) <= 60
    assert "\n" not in line
