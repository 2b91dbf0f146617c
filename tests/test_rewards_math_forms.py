"""Verifier `math`: the kinds of forms in which answers come, and in which they only seem right."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.verifiers.forms import generated_pairs
from benchmarks.verifiers.maths import disagreements
from benchmarks.verifiers.tasks import make_task
from posttrain.rewards import check_reference, verify
from posttrain.rewards.mathtext import formula_in, plain_math
from posttrain.rewards.places import final_answer, without_reasoning

# Kind, reference, answer, whether it passes.
CASES = [
    ("thin spaces do not split", r"2\pi", r"\boxed{2\,\pi}", True),
    ("thin spaces do not split", "-3, 4", r"\boxed{-3,\; 4}", True),
    ("thin spaces do not split", "12", r"\boxed{12\,\text{cm}}", True),
    ("thin spaces do not split", r"576\pi\;m^{2}", r"\boxed{576\pi\;m^{2}}", True),
    ("thin spaces do not split", "5", r"\boxed{5 \quad 6}", False),
    ("thousands do not split", "12000023", r"\boxed{12,\!000,\!023}", True),
    ("thousands do not split", "11111111100", r"\boxed{11,\! 111,\! 111,\! 100}", True),
    ("decimal commas", "1000.99", r"\boxed{1000,99}", True),
    ("decimal commas", "1,22", "1.22", True),
    ("decimal commas", "3,5", "3.5", False),
    ("decimal commas", "0,111", "0.111", True),
    ("display on lines of its own", "9", "So we get\n\\[\n9\n\\]", True),
    ("display on lines of its own", "9", "So we get\n$$\nx = 9\n$$", True),
    ("display on lines of its own", "9", "The answer is:\n\\[\n9\n\\]", True),
    ("display on lines of its own", "9",
     "\\begin{align*}\nx &= 3 + 6 \\\\\n&= 9\n\\end{align*}", True),
    ("display on lines of its own", "9", "So\n\\[\n8\n\\]\nis what we get.", False),
    ("rows of a matrix", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
     r"\boxed{\begin{pmatrix} 2 \\ 1 \end{pmatrix}}", False),
    ("rows of a matrix", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
     r"\boxed{\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}}", False),
    ("rows of a matrix", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
     r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}", True),
    ("joined boxes", "6", r"\(\boxed{5}\) or \(\boxed{6}\)", False),
    ("joined boxes", "6", r"\boxed{5} \quad \text{or} \quad \boxed{6}", False),
    ("joined boxes", "5, 6", r"\(\boxed{5}\) and \(\boxed{6}\)", True),
    ("joined boxes", "5", r"\boxed{5} or equivalently \boxed{\frac{10}{2}}", True),
    ("joined boxes", "3:4", r"\boxed{3}:\boxed{4}", True),
    ("joined boxes", "6", r"First \boxed{5}. Then I see that it is \boxed{6}", True),
    ("boxes of a reference", r"so $x=\boxed{-2}$ and $x=\boxed{1}$.", r"\boxed{-2, 1}", True),
    ("boxes of a reference", r"The values are $\boxed{-2}$ and $\boxed{1}$.", r"\boxed{1}", False),
    ("variables are no units", "20 x y", r"\boxed{20}", False),
    ("variables are no units", "3 a b", r"\boxed{3 a c}", False),
    ("variables are no units", "6 x^2 y", r"\boxed{6 x y^2}", False),
    ("variables are no units", r"\frac{1}{2} m v^2", r"\boxed{\frac{1}{2}}", False),
    ("variables are no units", "12 n", r"\boxed{12}", False),
    ("variables are no units", "20xyz", r"\boxed{20 xyz}", True),
    ("variables are no units", "5", r"\boxed{5 m}", False),
    ("variables have a case", "2A", r"\boxed{2a}", False),
    ("units", "5 m", r"\boxed{5\ \text{meters}}", True),
    ("units", r"5\text{ m}", r"\boxed{5 \text{ km}}", False),
    ("times of day", "12:30 PM", r"\boxed{12:30 AM}", False),
    ("times of day", "12:30 PM", r"\boxed{12:30 \text{ p.m.}}", True),
    ("times of day", "9:30", r"\boxed{3:10}", False),
    ("times of day", "12:00", r"\boxed{12:30}", False),
    ("times of day", "15:00", r"\boxed{3:00 PM}", True),
    ("ratios", "3:2:1", r"\boxed{3:2}", False),
    ("ratios", "$S_{1}:S=7:32$", r"\boxed{7}", False),
    ("ratios", "$S_{1}:S=7:32$", r"\boxed{7:32}", True),
    ("ratios", "1:2", r"\boxed{2:4}", True),
    ("ratios", "3:5", r"\boxed{6:10}", True),
    ("ratios", "3:4", r"\boxed{\frac{3}{4}}", False),
    ("other bases", "52_8", r"\boxed{52_9}", False),
    ("other bases", "52_8", r"\boxed{52}", False),
    ("other bases", "52_8", r"\boxed{52_{8}}", True),
    ("reasoning does not count", "42",
     "<think>maybe \\boxed{7}</think>\n\nThe answer is $42$.", True),
    ("reasoning does not count", "7",
     "<think>maybe \\boxed{7}</think>\n\nThe answer is $42$.", False),
    ("reasoning does not count", "42", "<think>I think \\boxed{42} but wait, let me", False),
    ("reasoning does not count", "42", "maybe \\boxed{7}</think>\n42", True),
    ("reasoning does not count", "42", "[THINK]\\boxed{7}[/THINK]\\boxed{42}", True),
    ("last lines with labels", "18", "2*9=18\nA: 18", True),
    ("last lines of other scripts", "9", "99-90=9\n她还剩9页没有看。", True),
    ("last lines of other scripts", "9", "99-90=9\nしたがって、残りは9ページです。", True),
    ("prices", "100", r"So it costs \$100.", True),
    ("words that begin like functions", "5", "She logged and since costs 5.", True),
    ("prices", "18", "He makes 9*2 = $18 every day.", True),
    ("bold", "18", "**Answer:** She has **18** apples.", True),
    ("bold", "18", "So she has **18** apples after 3 days.", True),
    ("long sets", r"\{1,2,3,4,5,6,7,8,9\}", r"\boxed{\{9,8,7,6,5,4,3,2,1\}}", True),
    ("sets without duplicates", r"\{1,2,3\}", r"\boxed{\{1,2,3,3\}}", True),
    ("tuples keep duplicates", "(1,2,3)", r"\boxed{(1,2,3,3)}", False),
    ("names keep the order", "x = 1, y = 2", r"\boxed{2, 1}", False),
    ("names keep the order", "x = 1, y = 2", r"\boxed{y = 2, x = 1}", True),
    ("hedging", "3", "3 or 4", False),
    ("hedging", "3", "It is 3 apples or 4 apples.", False),
    ("hedging", "3", "The answer is $3$ or maybe $4$.", False),
    ("half an answer", "3, 4", "3", False),
    ("denied", "5", "The answer is not 5.", False),
    ("denied", "5", "It is not true that the answer is 5.", False),
    ("equations are no values", "1", r"\boxed{x + z = 1}", False),
    ("side by side is no sum", "5", r"\boxed{2 3}", False),
    ("factors in brackets", "6", r"\boxed{(2)(3)}", True),
    ("factors in brackets", "5", r"\boxed{2(3)}", False),
    ("repeating decimals", r"\frac{1}{3}", r"\boxed{0.\overline{3}}", True),
    ("small decimals", "0.0001234", r"\boxed{0.0001233}", False),
    ("roots of negative numbers", "2i", r"\boxed{\sqrt{-4}}", True),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "reference", "answer", "passed"), CASES)
def test_a_form_of_an_answer(kind: str, reference: str, answer: str, passed: bool) -> None:
    outcome = verify(make_task("math", reference), answer)
    assert outcome.passed is passed, (kind, outcome)
    assert check_reference(make_task("math", reference)) is None


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9))
def test_a_value_in_other_words_passes_and_another_does_not(seed: int) -> None:
    assert disagreements(list(generated_pairs(seed, 6))) == []


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_text_has_one_place_and_one_writing(text: str) -> None:
    assert without_reasoning(without_reasoning(text)) == without_reasoning(text)
    assert len(final_answer(text)) <= len(text)
    assert isinstance(formula_in(plain_math(text)), str)


@pytest.mark.parametrize("verifier", ["exact", "math", "choice"])
def test_every_verifier_reads_the_answer_at_one_place(verifier: str) -> None:
    reference, wrong = ("B", "C") if verifier == "choice" else ("7", "8")
    task = make_task(verifier, reference)
    for frame in (
        "<think>\\boxed{{{1}}}</think>\\boxed{{{0}}}", "{1}</think>{0}", "<answer>{0}</answer>",
        "The answer is {1}. No:\n#### {0}", "\\boxed{{{1}}}\nThe final answer is {0}.",
        "答案是{0}。", "**Answer:**\n\n{0}", "<answer>\\boxed{{{0}}}</answer>",
    ):  # fmt: skip
        assert verify(task, frame.format(reference, wrong)).passed is True, frame
        assert verify(task, frame.format(wrong, reference)).passed is False, frame
    assert verify(task, f"<think>The answer is {reference}").passed is False


@pytest.mark.parametrize(
    "text",
    ["The answer is not B.", "Answer: not B", "The answer isn't B.", "The answer can't be B",
     "I do not think that the answer is B.", "B is wrong.", "(B) is not correct.", "答案不是B",
     "Ответ: не B", "The answer is anything but B.", "It is not Rome.", "Rome is not the capital."],
)  # fmt: skip
def test_a_denied_option_is_not_chosen(text: str) -> None:
    options = {"A": "Paris", "B": "Rome", "C": "Berlin", "D": "Madrid"}
    task = make_task("choice", "B", options=options)
    outcome = verify(task, text)
    assert outcome.passed is False, outcome


@pytest.mark.parametrize(
    "text",
    ["The answer is B, which is not the largest city.", "I am not sure, but B.",
     "It is B. Not sure.",
     "B, because it cannot move", "The answer is B because no one can deny it."],
)  # fmt: skip
def test_an_option_that_is_not_denied_is_chosen(text: str) -> None:
    options = {"A": "Paris", "B": "Rome", "C": "Berlin", "D": "Madrid"}
    assert verify(make_task("choice", "B", options=options), text).passed is True
    negative = {"A": "Paris", "B": "It is not known", "C": "Berlin"}
    assert verify(make_task("choice", "B", options=negative), "It is not known").passed is True
