"""Generated maths answers: one value written in many ways, and other values that look like it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks.verifiers.maths import Pair, measure_agreement
from posttrain.bench.measure import Result

Written = tuple[Sequence[str], Sequence[str]]
"""Ways to write one value, and ways to write values that differ from it."""

FRAMES = (
    "{}", "${}$", "\\boxed{{{}}}", "So it is $\\boxed{{{}}}$.", "So we get\n\\[\n{}\n\\]",
    "Now\n\n$$\n{}\n$$\n", "The answer is ${}$.", "The final answer is ${}$. I hope it is correct.",
    "2 + 2 = 4\n#### {}", "**Answer:** ${}$", "Answer:\n\n\\[ {} \\]", "<answer>{}</answer>",
    "<think>It is \\boxed{{7}}.</think>\n\n\\({}\\)", "Let me see. <think>or 8</think>\n{}",
    "\\begin{{equation}}\n{}\n\\end{{equation}}", "3 + 4 = 7\nA: {}",
    "答案是 ${}$。", "所以结果为 ${}$。",
    "Hence\n\\begin{{align*}}\n\\boxed{{{}}}.\n\\end{{align*}}", "**{}**",
    "Ответ: ${}$", "$\\fbox{{{}}}$",
)  # fmt: skip


def _integer(rng: random.Random) -> Written:
    number = rng.randint(1000, 9_999_999) * rng.choice((1, 1, -1))
    grouped = f"{number:,}"
    ways = [str(number), f"{number}.0", grouped, grouped.replace(",", "\\,")]
    ways += [grouped.replace(",", "{,}"), grouped.replace(",", ",\\!"), grouped.replace(",", " ")]
    return ways, [str(number + 1), str(-number), f"{number * 10:,}", f"{number}.5", f"{number}x"]


def _decimal(rng: random.Random) -> Written:
    whole, rest = rng.randint(1, 99), rng.randint(11, 98)
    rest += rest % 10 == 0
    ways = [f"{whole}.{rest}", f"{whole}.{rest}0", f"{whole},{rest}", f"{whole}{{,}}{rest}"]
    ways.append(f"\\frac{{{whole}{rest}}}{{100}}")
    return ways, [
        f"{whole}.{rest + 1}",
        f"{whole}; 0; {rest}",
        f"{whole}{rest}",
        f"{whole}.0{rest}",
    ]


def _fraction(rng: random.Random) -> Written:
    below = rng.choice((3, 7, 9, 11, 13))
    above = rng.randint(1, 5) * below + rng.randint(1, below - 1)
    whole, left = divmod(above, below)
    ways = [f"\\frac{{{above}}}{{{below}}}", f"{above}/{below}", f"\\dfrac{{{above}}}{{{below}}}"]
    ways += [f"\\frac{{{3 * above}}}{{{3 * below}}}", f"{whole}\\frac{{{left}}}{{{below}}}"]
    ways += [f"{whole} {left}/{below}", f"\\left(\\frac{{{above}}}{{{below}}}\\right)"]
    others = [f"\\frac{{{above + 1}}}{{{below}}}", f"{below}/{above}", f"{above / below:.2f}"]
    return ways, [*others, f"-\\frac{{{above}}}{{{below}}}", f"{above}:{below}"]


def _root(rng: random.Random) -> Written:
    factor, under = rng.randint(2, 9), rng.choice((2, 3, 5, 6, 7))
    ways = [f"{factor}\\sqrt{{{under}}}", f"{factor} \\, \\sqrt{{{under}}}", f"{factor}√{under}"]
    ways += [f"\\sqrt{{{factor**2 * under}}}", f"{factor}*sqrt({under})", f"{factor}\\sqrt{under}"]
    others = [f"{under}\\sqrt{{{factor}}}", f"{factor}\\sqrt{{{under + 1}}}", f"{factor * under}"]
    return ways, [one for one in others if not (factor == under and one == others[0])]


def _circle(rng: random.Random) -> Written:
    factor = rng.randint(2, 99)
    ways = [
        f"{factor}\\pi",
        f"{factor}\\,\\pi",
        f"{factor} \\cdot \\pi",
        f"{factor}π",
        f"{factor}*pi",
    ]
    return ways, [f"{factor + 1}\\pi", f"\\pi^{{{factor}}}", str(factor), f"{factor}p"]


def _polynomial(rng: random.Random) -> Written:
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(1, 9)
    ways = [f"{a}x^2 + {b}x - {c}", f"{a}x^{{2}}+{b}x-{c}", f"{a} x^2+{b} x-{c}", f"{a}x²+{b}x−{c}"]  # noqa: RUF001
    ways += [
        f"-{c}+{b}x+{a}x^2",
        f"x({a}x+{b})-{c}",
        f"{a}*x**2+{b}*x-{c}",
        f"{a}x^2\\,+\\,{b}x-{c}",
    ]
    others = [f"{a}x^2+{b}x+{c}", f"{a}x^2+{b}y-{c}", f"{a}x+{b}x^2-{c}", f"{a}x^2+{b}x"]
    return ways, [one for one in others if a != b or one != others[2]]


def _product(rng: random.Random) -> Written:
    factor, (one, two) = rng.randint(2, 99), rng.sample("abcmnpqrstuvwxyz", 2)
    ways = [f"{factor} {one} {two}", f"{factor}{one}{two}", f"{factor}{two}{one}"]
    ways.append(f"{factor} \\cdot {one} \\cdot {two}")
    others = [str(factor), f"{factor} {one}", f"{factor} {one} k", f"{factor} {one}^2 {two}"]
    return ways, [*others, f"{factor + 1}{one}{two}", f"{factor}{one}{two.upper()}"]


def _set(rng: random.Random) -> Written:
    members = rng.sample(range(-20, 40), rng.randint(2, 11))
    shuffled = rng.sample(members, len(members))
    comma = ", ".join(map(str, shuffled))
    ways = [
        f"\\{{{', '.join(map(str, members))}\\}}",
        f"\\{{{comma}\\}}",
        f"\\left\\{{{comma}\\right\\}}",
    ]
    ways += [
        f"\\{{{comma}, {members[0]}\\}}",
        comma.replace(", ", ",\\; "),
        comma.replace(", ", "; "),
    ]
    fewer = ", ".join(map(str, members[1:]))
    return ways, [
        f"\\{{{fewer}\\}}",
        f"\\{{{comma}, 99\\}}",
        str(members[0]),
        str(len(members) + 90),
    ]


def _tuple(rng: random.Random) -> Written:
    first, second = rng.sample(range(-20, 21), 2)
    low, high = sorted((first, second))
    if rng.randrange(2):
        ways = [
            f"({first}, {second})",
            f"({first},{second})",
            f"\\left({first},\\,{second}\\right)",
        ]
        ways += [f"(x,y)=({first},{second})", f"( {first} , {second} )"]
        others = [f"({second}, {first})", f"\\{{{first}, {second}\\}}", f"({first}, {second}, 0)"]
        return ways, [*others, str(first), f"({first}, {second + 1})"]
    ways = [f"[{low}, {high})", f"\\left[{low},{high}\\right)", f"x \\in [{low},{high})"]
    ways.append(f"{low} \\le x < {high}")
    return ways, [f"[{low}, {high}]", f"({low}, {high})", f"[{low}, {high + 1})", str(low)]


def _roots(rng: random.Random) -> Written:
    one, two = rng.sample(range(1, 40), 2)
    ways = [f"x = {one} or x = {two}", f"x={two}, x={one}", f"x={one} \\text{{ or }} x={two}"]
    ways += [f"{two}, {one}", f"x = {one} \\quad \\text{{or}} \\quad x = {two}"]
    return ways, [f"x = {one}", str(two), f"x = {one} or x = {two + 40}", f"{one}, {two}, 50"]


def _matrix(rng: random.Random) -> Written:
    a, b, c, d = (str(number) for number in rng.sample(range(-9, 10), 4))

    def write(rows: str, kind: str = "pmatrix") -> str:
        return f"\\begin{{{kind}}}{rows}\\end{{{kind}}}"

    ways = [write(f" {a} & {b} \\\\ {c} & {d} "), write(f"{a}&{b}\\\\{c}&{d}", "bmatrix")]
    ways.append(write(f"{a} & {b} \\\\\n{c} & {d}"))
    others = [f"{b} & {a} \\\\ {c} & {d}", f"{a} & {c} \\\\ {b} & {d}", f"{a} & {b} & {c} & {d}"]
    return ways, [*map(write, others), write(f"{a} \\\\ {b} \\\\ {c} \\\\ {d}")]


def _length(rng: random.Random) -> Written:
    number = rng.randint(2, 999)
    ways = [f"{number} \\text{{ cm}}", f"{number}\\,\\text{{cm}}", f"{number} \\mathrm{{~cm}}"]
    ways += [f"{number} cm", str(number)]
    return ways, [f"{number + 1} \\text{{ cm}}", f"{number + 1}", f"{number} x", f"{number}:1"]


def _clock(rng: random.Random) -> Written:
    hour, minute = rng.randint(1, 11), rng.randint(10, 59)
    ways = [f"{hour}:{minute} PM", f"{hour}:{minute} \\text{{ p.m.}}", f"{hour}:{minute} pm"]
    others = [f"{hour}:{minute} AM", f"{hour}:{(minute + 1) % 60:02} PM", f"{hour + 1}:{minute} PM"]
    return ways, [*others, str(hour), f"\\frac{{{hour}}}{{{minute}}}"]


def _ratio(rng: random.Random) -> Written:
    one, two = rng.sample((2, 3, 5, 7), 2)
    ways = [f"{one}:{two}", f"{one} : {two}", f"a:b={one}:{two}"]
    return ways, [f"{two}:{one}", f"{one}:{two}:1", str(one), f"{one}:{two + 6}"]


def _based(rng: random.Random) -> Written:
    digits = "".join(rng.choice("1234") for _ in range(4))
    ways = [f"{digits}_5", f"{digits}_{{5}}", f"({digits})_5", f"{digits}_{{\\text{{base }}5}}"]
    return ways, [digits, f"{digits}_6", f"{digits}0_5", str(int(digits, 5))]


KINDS: Mapping[str, Callable[[random.Random], Written]] = {
    "integer": _integer,
    "decimal": _decimal,
    "fraction": _fraction,
    "root": _root,
    "multiple of pi": _circle,
    "polynomial": _polynomial,
    "product of variables": _product,
    "set": _set,
    "tuple or interval": _tuple,
    "several roots": _roots,
    "matrix": _matrix,
    "length": _length,
    "time of day": _clock,
    "ratio": _ratio,
    "other base": _based,
}


def generated_pairs(seed: int, size: int) -> Iterator[Pair]:
    """Yield `size` pairs whose answer is the reference in other words, and as many that differ."""
    rng = random.Random(seed)
    for _ in range(size):
        kind, make = rng.choice(list(KINDS.items()))
        ways, others = make(rng)
        for equal, answers in ((True, ways), (False, others)):
            answer = rng.choice(FRAMES).format(rng.choice(list(answers)))
            reference = rng.choice(list(ways))
            yield Pair(reference=reference, answer=answer, equal=equal, form=kind)


def measure_forms(num_pairs: int = 20_000) -> Result:
    """Measure agreement on generated values: equal ones that fail, and others that pass."""
    return measure_agreement(
        list(generated_pairs(0, num_pairs)),
        name="verify-forms",
        title="The maths verifier on values in other words, and on others that look like them",
    )
