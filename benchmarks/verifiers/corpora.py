"""The maths verifier against public answers: its library's own expectations, and evaluation sets.

The folder holds checkouts of github.com/huggingface/Math-Verify, QwenLM/Qwen2.5-Math and
openai/grade-school-math; nothing of them is stored here.
"""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.verifiers.maths import Pair, measure_agreement
from benchmarks.verifiers.tasks import make_task
from posttrain.bench.measure import Result
from posttrain.rewards import check_reference

_FILES = ("test_all", "test_boxed", "test_numina_cases", "test_open_thoughts", "test_yujianll")
_SETS = {
    "college_math": "answer",
    "gaokao2023en": "answer",
    "carp_en": "answer",
    "olympiadbench": "final_answer",
    "cmath": "answer",
    "gaokao_math_cloze": "answer",
    "asdiv": "answer",
    "svamp": "Answer",
    "aime24": "answer",
}
_MOST_OF_A_SET = 400
_FORMS = {
    "box": "So it is \\boxed{{{}}}.",
    "display": "So we get\n\\[\n{}\n\\]",
    "dollars": "Let me see.\n\n$$\n{}\n$$",
    "phrase": "We add. The final answer is ${}$. I hope it is correct.",
}


def expectations_of_math_verify(folder: Path) -> Iterator[Pair]:
    """Yield the pairs of its tests with the outcome that they expect."""
    for name in _FILES:
        tree = ast.parse((folder / "Math-Verify" / "tests" / f"{name}.py").read_text("utf-8"))
        for test in tree.body:
            if isinstance(test, ast.FunctionDef):
                for decorator in test.decorator_list:
                    yield from _expectations(test.name, decorator)


def _expectations(test: str, decorator: ast.expr) -> Iterator[Pair]:
    """Yield the pairs of one `parametrize`, without those that set options which we do not have."""
    try:
        assert isinstance(decorator, ast.Call)
        names, rows = map(ast.literal_eval, decorator.args)
    except (AssertionError, ValueError):
        return
    for row in rows:
        case = dict(zip(names.replace(" ", "").split(","), row, strict=True))
        options = (case.get("strict", True), case.get("precision", 6))
        if options == (True, 6) and case.get("allow_set_relation_comp", True):
            equal = bool(case.get("expected", case.get("result")))
            yield Pair(reference=case["gold"], answer=case["pred"], equal=equal, form=test)


def answers_of_evaluation_sets(folder: Path) -> Iterator[Pair]:
    """Yield each reference in four frames, and with another reference of its set."""
    rng = random.Random(0)
    for name, key in _SETS.items():
        path = folder / "Qwen2.5-Math" / "evaluation" / "data" / name / "test.jsonl"
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        references = [text for row in rows if (text := _reference(row[key]))]
        rng.shuffle(references)
        references = [text for text in references[:_MOST_OF_A_SET] if _fits(text)]
        for reference in references:
            form, frame = rng.choice(list(_FORMS.items()))
            answer = reference.strip().strip("$")
            yield Pair(
                reference=reference, answer=frame.format(answer), equal=True, form=f"{name}, {form}"
            )
            other = rng.choice(references)
            if _folded(other) != _folded(reference):
                answer = frame.format(other.strip().strip("$"))
                yield Pair(
                    reference=reference, answer=answer, equal=False, form=f"{name}, another's"
                )


def _reference(value: Any) -> str:
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else ""
    text = str(value)
    return text if "$" not in text.strip().strip("$") else ""


def _fits(reference: str) -> bool:
    """Return whether the verifier takes a reference; what is refused is refused in words, too."""
    return check_reference(make_task("math", reference)) is None


def _folded(text: str) -> str:
    return "".join(text.replace("$", "").split()).removesuffix(".0")


def solutions_of_models(folder: Path) -> Iterator[Pair]:
    """Yield whole solutions by models, labelled by the sets' makers."""
    path = folder / "Qwen2.5-Math" / "evaluation" / "data" / "eval_rm_maj_example"
    for line in (path / "math_cot_100.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        for text, right in zip(row["code"], row["score"], strict=True):
            yield Pair(reference=row["answer"], answer=text, equal=right, form="Qwen2.5-Math")
    path = folder / "grade-school-math" / "grade_school_math" / "data"
    for line in (path / "example_model_solutions.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        for name, solution in row.items():
            if isinstance(solution, dict):
                reference = row["ground_truth"].rpartition("A: ")[2]
                yield Pair(
                    reference=reference,
                    answer=solution["solution"],
                    equal=solution["is_correct"],
                    form=f"grade-school-math {name}",
                )


CORPORA: Mapping[str, tuple[str, Callable[[Path], Iterator[Pair]]]] = {
    "verify-expected": ("what math-verify's tests expect", expectations_of_math_verify),
    "verify-references": ("references of evaluation sets", answers_of_evaluation_sets),
    "verify-solutions": ("labelled solutions of models", solutions_of_models),
}
# The end of a reference and of its answer, and why we hold the verifier right.
_REASONS = (
    ("$9$", "\n $", "we read formulas over several lines"),
    ("$9$", "\n \\)", "we read formulas over several lines"),
    ("$(1,3)$", "${1,3}$", "brackets count: a set is no tuple"),
    ("4}$", "${35 cm,4}$", "the boxes are joined by plus signs"),
    ("W(n) = -1", "W(x)=1orW(x)=-1", "the reference's box never closes"),
    ("{\\mathrm{e}}$", "{\\mathrm{e}}$", "minus is not plus: theirs is wrong"),
    ("{4:30 p.m.}", "", "they are the same time: the label is wrong"),
    ("10{,}000", "", "they are the same number: the label is wrong"),
)


def measure_corpora(folder: Path) -> Iterator[Result]:
    """Measure agreement with each corpus; disagreements come with a reason where we know it."""
    for name, (title, pairs) in CORPORA.items():
        yield measure_agreement(
            list(pairs(folder)),
            name=name,
            title=f"The maths verifier against {title}",
            reasons=_reason,
        )


def _reason(pair: Pair) -> str:
    """Return why we hold the verifier right; empty where we do not."""
    return next(
        (
            why
            for reference, answer, why in _REASONS
            if pair.reference.endswith(reference) and pair.answer.rstrip().endswith(answer)
        ),
        "",
    )
