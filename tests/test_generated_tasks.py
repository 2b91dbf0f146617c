"""Generated tasks and the reference column: what is asked for is what the tests decide."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from posttrain.data.constraints import MAX_LEVEL, make_writing
from posttrain.data.python_functions import LEVELS, Problem, make_problem
from posttrain.errors import RecipeError
from posttrain.recipe import load_recipe
from posttrain.records import Prompt
from posttrain.rewards import VERIFIERS, verify
from tests.builders import data_recipe, file_source, load_bundle, write_jsonl

needs_checkers = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("lm_eval", "langdetect", "nltk")),
    reason="needs the extra instructions",
)
needs_code = pytest.mark.skipif("code" not in VERIFIERS, reason="needs the verifier code")


def passes(problem: Problem, program: str) -> bool:
    """Whether a program meets the tests, run in this process: the programs are the tests' own."""
    task = json.loads(problem.reference)
    space: dict[str, Any] = {}
    exec(program, space)
    function: Callable[..., Any] = space[task["entry_point"]]
    for test in task["tests"]:
        try:
            given = function(*json.loads(json.dumps(test["args"])))
        except Exception:
            return False
        if type(given) is not type(test["expect"]) or given != test["expect"]:
            return False
    return True


@pytest.mark.parametrize("level", LEVELS)
def test_solutions_are_short_right_and_seeded(level: int) -> None:
    for seed in range(200):
        problem = make_problem(Random(seed), level)
        assert problem == make_problem(Random(seed), level)
        assert passes(problem, problem.answer), problem
        task = json.loads(problem.reference)
        assert set(task) == {"entry_point", "tests"}
        assert len(task["tests"]) >= 8
        assert all(set(test) == {"args", "expect"} for test in task["tests"])
        assert len(problem.answer) < 75
        assert task["entry_point"] + "(" in problem.question


@pytest.mark.parametrize("level", LEVELS)
def test_the_solutions_of_other_questions_fail(level: int) -> None:
    """Mutants with a meaning: every other solution of the level, under this one's name."""
    problems = {p.answer.split("return ")[1]: p for p in (make_problem(Random(s), level)
                                                          for s in range(400))}  # fmt: skip
    survived: list[tuple[str, str]] = []
    bodies = sorted(problems)
    rng = Random(5)
    for body in bodies:
        problem = problems[body]
        head = problem.answer.split("\n")[0]
        arguments = head[head.index("(") :]
        same = [b for b in bodies if problems[b].answer.split("\n")[0].endswith(arguments)]
        for other in rng.sample(same, min(len(same), 25)):
            if other != body and passes(problem, f"{head}\n    return {other}"):
                survived.append((body, other))
    assert len(bodies) >= 60
    assert [pair for pair in survived if not really_equal(*pair)] == []


def really_equal(one: str, other: str) -> bool:
    """Two ways of writing the same function."""
    names = {"x": range(-200, 200), "s": ["", "ab", "hello", "xox"], "a": [[], [1], [3, 1, 2]]}
    for name, values in names.items():
        if all(name in body for body in (one, other)) and "y" not in one + other:
            undefined_for_empty = any(part in one for part in ("[-1]", "max(", "min("))
            given = [v for v in values if v != [] or not undefined_for_empty]
            return all(eval(one, {name: v}) == eval(other, {name: v}) for v in given)
    return False


@pytest.mark.parametrize("level", LEVELS)
def test_small_changes_of_a_solution_fail(level: int) -> None:
    """Mutants without a meaning: a constant one off, an operator exchanged."""
    swaps = [(" + ", " - "), (" * ", " + "), (" > ", " >= "), ("max(", "min("), ("% 2", "% 3")]
    swaps += [(" < ", " <= "), (">= ", "> "), (" == 0", " == 1"), ("[::-1]", ""), (" and ", " or ")]
    num_mutants = 0
    for seed in range(150):
        problem = make_problem(Random(seed), level)
        for old, new in swaps:
            body = problem.answer.split("return ")[1]
            if old in body and new not in body:
                mutant = problem.answer.replace(body, body.replace(old, new, 1))
                num_mutants += 1
                if passes(problem, mutant):
                    assert alike_everywhere(problem.answer, mutant), (problem, mutant)
    assert num_mutants > 20


def alike_everywhere(one: str, other: str) -> bool:
    """Whether two programs on numbers agree far beyond the tests: (x + 10) % 2 and (x - 10) % 2."""
    functions: list[Callable[..., Any]] = []
    for program in (one, other):
        space: dict[str, Any] = {}
        exec(program, space)
        functions.append(space[program[len("def ") : program.index("(")]])
    arguments = one[one.index("(") + 1 : one.index(")")]
    assert arguments in ("x", "x, y"), one
    wide = range(-400, 400)
    given = [(x,) for x in wide] if arguments == "x" else [(x, y) for x in wide for y in wide[::7]]
    return all(functions[0](*values) == functions[1](*values) for values in given)


@pytest.mark.parametrize("seed", range(30))
def test_a_wrong_type_is_not_the_answer(seed: int) -> None:
    problem = make_problem(Random(seed), 1 + seed % 5)
    body = problem.answer.split("return ")[1]
    assert not passes(problem, problem.answer.replace(body, f"str({body}) + ' '"))
    assert not passes(problem, problem.answer.replace(body, "None"))


def test_there_are_many_questions_and_levels_that_there_are_not() -> None:
    for level in LEVELS:
        assert len({make_problem(Random(s), level).question for s in range(1000)}) > 400
    with pytest.raises(ValueError, match="levels"):
        make_problem(Random(0), 6)


@needs_code
def test_the_verifier_takes_solutions_and_no_others() -> None:
    for level in LEVELS:
        for seed in range(4):
            problem = make_problem(Random(seed), level)
            task = Prompt.make(
                messages=[{"role": "user", "content": problem.question}],
                reference=problem.reference,
                verifier="code",
                capability="code",
            )
            assert verify(task, problem.answer).passed is True
            body = problem.answer.split("return ")[1]
            assert verify(task, problem.answer.replace(body, "None")).passed is False


@needs_checkers
@pytest.mark.parametrize("level", range(1, MAX_LEVEL + 1))
def test_answers_meet_their_constraints_and_others_do_not(level: int) -> None:
    kinds: Counter[str] = Counter()
    failed = 0
    for seed in range(40):
        writing = make_writing(Random(seed), level)
        assert writing == make_writing(Random(seed), level)
        task = json.loads(writing.reference)
        assert len(task["instruction_id_list"]) == level
        kinds.update(task["instruction_id_list"])
        prompt = Prompt.make(
            messages=[{"role": "user", "content": writing.question}],
            reference=writing.reference,
            verifier="instructions",
            capability="c",
        )
        assert verify(prompt, writing.answer).passed is True
        failed += verify(prompt, "Yes, That Is So, I Think").passed is False
        for text in ("x", "Yes.", "I do not know"):
            assert verify(prompt, text).passed is False
    assert failed >= 34
    assert len(kinds) >= (8 if level == 1 else 12)


@needs_checkers
def test_no_task_contradicts_lm_evals_table() -> None:
    from posttrain.rewards.instructions import constraint_kinds

    table = constraint_kinds()
    for seed in range(60):
        names = json.loads(make_writing(Random(seed), 4).reference)["instruction_id_list"]
        for name in names:
            assert not set(table[name]["conflicts"]) & (set(names) - {name})


# ---- in a recipe


def code_source(size: int = 20, **spec: Any) -> dict[str, Any]:
    return {"generated": {"python_functions": spec}, "size": size}


@pytest.fixture
def _code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the verifier code is not there yet, one that takes anything stands in for its check."""
    if "code" not in VERIFIERS:
        from posttrain import rewards

        stand_in = {**VERIFIERS, "code": VERIFIERS["exact"]}
        monkeypatch.setattr(rewards, "VERIFIERS", stand_in)


@pytest.mark.usefixtures("_code")
def test_generated_problems_are_sized_held_out_and_not_repeated(tmp_path: Path) -> None:
    made = data_recipe(sft=[code_source(30, levels=[1, 2])], rl=[code_source(25)], heldout=10)
    bundle = load_bundle(made, tmp_path)
    assert [len(bundle.samples), len(bundle.prompts), len(bundle.suites["heldout"])] == [30, 25, 10]
    assert {p.verifier for p in bundle.prompts} == {"code"}
    assert {s.capability for s in bundle.samples} == {"python_functions"}
    assert {s.meta["level"] for s in bundle.samples} == {"level 1", "level 2"}
    for sample in bundle.samples:
        assert sample.verifier == "code"
        assert "tests" in json.loads(sample.reference or "")
        assert sample.messages[-1]["content"].startswith("def ")
    again = load_bundle(made, tmp_path)
    assert [p.prompt_id for p in again.prompts] == [p.prompt_id for p in bundle.prompts]
    other = load_bundle(made, tmp_path, seed=1)
    assert [p.prompt_id for p in other.prompts] != [p.prompt_id for p in bundle.prompts]


@needs_checkers
def test_generated_constraints_are_samples_and_prompts(tmp_path: Path) -> None:
    spec = {"generated": {"constraints": {"levels": [1, 3]}}, "size": 8, "capability": "form"}
    bundle = load_bundle(data_recipe(sft=[spec], rl=[spec]), tmp_path)
    assert len(bundle.samples) == len(bundle.prompts) == 8
    assert {p.capability for p in bundle.prompts} == {"form"}
    for prompt in bundle.prompts:
        assert verify(prompt, "x").passed is False
    for sample in bundle.samples:
        assert sample.verifier == "instructions"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{generated: {python_function: {}}, size: 3}", "python_functions"),
        ("{generated: {python_functions: {level: [1]}}, size: 3}", "levels"),
        ("{generated: {python_functions: {levels: [6]}}, size: 3}", "must be at most 5"),
        ("{generated: {python_functions: {levels: []}}, size: 3}", "levels"),
        ("{generated: {}, size: 3}", "names no generator"),
        ("{generated: {python_functions: {}}}", "generated is endless: give size"),
        ("{generated: {python_functions: {}}, size: 3, verifier: math}", "leave verifier out"),
        ("{generated: {python_functions: {}}, size: 3, columns: {answer: b}}", "belongs to path"),
        ("{generated: {python_functions: {}}, path: a.jsonl, size: 3}", "exactly one of"),
        ("{reasoning_gym: {gcd: {level: 99}}, size: 3}", "has the levels 0 to"),
        ("{reasoning_gym: {chain_sum: {level: high}}, size: 3}", "a whole number from 0"),
        ("{reasoning_gym: {chain_sum: {levl: 1}}, size: 3}", "did you mean 'level'"),
    ],
)
def test_check_names_what_is_wrong(tmp_path: Path, written: str, message: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(f"model: {{base: m}}\nrl:\n  data:\n    - {written}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert message in f"{caught.value.message} {caught.value.hint}"


# ---- the reference column

TESTS = {"entry_point": "f", "tests": [{"args": [1], "expect": 2}]}


@pytest.mark.usefixtures("_code")
def test_a_reference_column_is_found_and_needs_no_answer(tmp_path: Path) -> None:
    rows = [
        {"question": "Write f(x), x plus 1.", "reference": TESTS},
        {"question": "Write f(x), x plus one.", "reference": json.dumps(TESTS)},
    ]
    write_jsonl(tmp_path, rows)
    bundle = load_bundle(data_recipe(rl=[file_source(verifier="code")]), tmp_path)
    assert [json.loads(p.reference) for p in bundle.prompts] == [TESTS, TESTS]


@pytest.mark.usefixtures("_code")
def test_a_mapped_reference_and_the_answer_to_learn(tmp_path: Path) -> None:
    rows = [{"question": "f?", "answer": "def f(x):\n    return x + 1", "checks": TESTS}]
    write_jsonl(tmp_path, rows)
    mapped = file_source(verifier="code", columns={"reference": "checks"})
    bundle = load_bundle(data_recipe(sft=[mapped]), tmp_path)
    (sample,) = bundle.samples
    assert sample.messages[-1]["content"].startswith("def f")
    assert json.loads(sample.reference or "") == TESTS
    write_jsonl(tmp_path, [{"question": "f?", "checks": TESTS}])
    with pytest.raises(RecipeError, match="no column answer or completion"):
        load_bundle(data_recipe(sft=[mapped]), tmp_path)


@pytest.mark.usefixtures("_code")
def test_a_missing_reference_column_names_the_one_to_write(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [{"question": "f?", "answer": "g", "test_list": TESTS}])
    with pytest.raises(RecipeError, match="verifier code needs a column reference") as caught:
        load_bundle(data_recipe(rl=[file_source(verifier="code")]), tmp_path)
    assert caught.value.hint == "under rl.data[0] write columns: {reference: test_list}"


@pytest.mark.usefixtures("_code")
def test_a_parquet_reference_becomes_canonical_json(tmp_path: Path) -> None:
    rows = [{"question": "f?", "reference": {"tests": [{"stdin": "1", "stdout": "2"}]}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    bundle = load_bundle(data_recipe(rl=[file_source("d.parquet", verifier="code")]), tmp_path)
    assert bundle.prompts[0].reference == '{"tests": [{"stdin": "1", "stdout": "2"}]}'


def test_choice_takes_its_options_from_the_reference_or_a_letter(tmp_path: Path) -> None:
    task = {"options": {"A": "Rome", "B": "Oslo"}, "answer": "B"}
    rows = [{"question": "Which?", "reference": task}]
    write_jsonl(tmp_path, rows)
    (prompt,) = load_bundle(data_recipe(rl=[file_source(verifier="choice")]), tmp_path).prompts
    assert verify(prompt, "Oslo").passed is True
    write_jsonl(tmp_path, [{"question": "A) Rome B) Oslo. Which?", "answer": "B"}])
    (prompt,) = load_bundle(data_recipe(rl=[file_source(verifier="choice")]), tmp_path).prompts
    assert verify(prompt, "(B)").passed is True


@needs_checkers
def test_rows_as_ifeval_publishes_them(tmp_path: Path) -> None:
    nulls = {"keywords": None, "num_words": None, "relation": None}
    row = {
        "key": 1000,
        "prompt": "Write a line without commas, using the word river.",
        "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
        "kwargs": [nulls, {**nulls, "keywords": ["river"]}],
    }
    write_jsonl(tmp_path, [row])
    (prompt,) = load_bundle(
        data_recipe(rl=[file_source(verifier="instructions")]), tmp_path
    ).prompts
    assert verify(prompt, "a river runs").passed is True
    assert verify(prompt, "a river, it runs").passed is False


@needs_checkers
@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        (None, "no_reference"),
        ("", "empty_turn"),
        ("not json", "verifier_fit"),
        ({"instruction_id_list": ["no:such"], "kwargs": [{}]}, "verifier_fit"),
        ([1, 2], "verifier_fit"),
        ("a\0b", "nul"),
    ],
)
def test_a_malformed_reference_is_quarantined(tmp_path: Path, reference: Any, reason: str) -> None:
    good = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    rows = [{"question": f"Write {n}.", "reference": good} for n in range(3)]
    write_jsonl(tmp_path, [*rows, {"question": "Write 4.", "reference": reference}])
    made = data_recipe(rl=[file_source(verifier="instructions")], max_bad_rows=0.5)
    bundle = load_bundle(made, tmp_path)
    assert len(bundle.prompts) == 3
    (left,) = bundle.quarantine
    assert (left["line"], left["reason"]) == (4, reason)


def test_a_worked_answer_beside_its_reference(tmp_path: Path) -> None:
    rows = [{"question": "2 + 2?", "answer": "Two and two make four.", "result": "4"}]
    write_jsonl(tmp_path, rows)
    mapped = file_source(verifier="math", columns={"reference": "result"})
    (sample,) = load_bundle(data_recipe(sft=[mapped]), tmp_path).samples
    assert sample.reference == "4"


def test_a_family_by_level(tmp_path: Path) -> None:
    low, high = ({"reasoning_gym": {"chain_sum": {"level": level}}, "size": 5} for level in (0, 2))
    bundle = load_bundle(data_recipe(rl=[low, high]), tmp_path)
    assert Counter(p.level for p in bundle.prompts) == {"level=0": 5, "level=2": 5}
    configs = {p.level: p.meta["config"] for p in bundle.prompts}
    assert configs["level=0"]["max_terms"] < configs["level=2"]["max_terms"]
    assert "level" not in configs["level=0"]
    for prompt in bundle.prompts:
        assert verify(prompt, prompt.reference).passed is True
