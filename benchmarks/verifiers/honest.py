"""Right answers in the many ways that people and models write them; all must pass."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.verifiers.tasks import FUNCTION, PROGRAM, make_task
from posttrain.records import Prompt

THREADED = frozenset({"a program with a big stack in a thread"})
"""Right answers that need a thread, which WebAssembly does not have."""


def honest_answers() -> list[tuple[str, Prompt, str]]:
    """Return each honest answer's name, prompt and text."""
    return [
        (name, make_task("code", reference), answer)
        for name, (reference, answer) in _ANSWERS.items()
    ]


def _calls(name: str, *tests: tuple[list[Any], Any], **more: Any) -> str:
    rows = [{"args": args, "expect": expect} for args, expect in tests]
    return json.dumps({"entry_point": name, "tests": rows, **more})


_PLAIN = (
    "def second_largest(n):\n    n = sorted(set(n))\n    return n[-2] if len(n) > 1 else None\n"
)
_FIB = _calls("fib", ([0], 0), ([1], 1), ([10], 55), ([30], 832040))
_WORDS = _calls("count", (["a b a"], {"a": 2, "b": 1}), ([""], {}))

_ANSWERS: dict[str, tuple[str, str]] = {
    "plain": (FUNCTION, _PLAIN),
    "fenced": (FUNCTION, f"Sure:\n```python\n{_PLAIN}```\nIt sorts first."),
    "fenced, no language": (FUNCTION, f"```\n{_PLAIN}```"),
    "fenced, then usage": (
        FUNCTION,
        f"```python\n{_PLAIN}```\nUse it so:\n```python\nprint(second_largest([1, 2]))\n```",
    ),
    "first try, then better": (
        FUNCTION,
        f"```python\ndef second_largest(n): return max(n)\n```\nBetter:\n```python\n{_PLAIN}```",
    ),
    "with a main block": (
        FUNCTION,
        f"{_PLAIN}\nif __name__ == '__main__':\n    print(second_largest(list(map(int, input()))))",
    ),
    "with prints": (FUNCTION, "print('loading')\n" + _PLAIN.replace(":\n", ":\n    print(n)\n")),
    "with a helper": (
        FUNCTION,
        "def distinct(n): return sorted(set(n))\n"
        "def second_largest(n):\n    d = distinct(n)\n    return d[-2] if d[1:] else None",
    ),
    "with a class": (
        FUNCTION,
        "class Finder:\n"
        "    def __init__(self, n): self.n = sorted(set(n))\n"
        "    def find(self): return self.n[-2] if len(self.n) > 1 else None\n"
        "def second_largest(n): return Finder(n).find()",
    ),
    "lambda": (
        FUNCTION,
        "second_largest = lambda n: sorted(set(n))[-2] if len(set(n)) > 1 else None",
    ),
    "with type hints": (
        FUNCTION,
        "from __future__ import annotations\nfrom typing import List, Optional\n"
        "def second_largest(n: List[int]) -> Optional[int]:\n"
        "    return sorted(set(n))[-2] if len(set(n)) > 1 else None",
    ),
    "standard library": (
        FUNCTION,
        "import heapq\n"
        "def second_largest(n):\n"
        "    two = heapq.nlargest(2, set(n))\n    return two[1] if len(two) == 2 else None",
    ),
    "input changed in passing": (
        FUNCTION,
        "def second_largest(n):\n"
        "    top = max(n)\n"
        "    while top in n: n.remove(top)\n    return max(n) if n else None",
    ),
    "recursion": (_FIB, "def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)"),
    "a cache": (
        _FIB,
        "from functools import lru_cache\n@lru_cache(None)\n"
        "def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)",
    ),
    "a generator inside": (
        _FIB,
        "import itertools\n"
        "def numbers():\n"
        "    a, b = 0, 1\n    while True:\n        yield a\n        a, b = b, a + b\n"
        "def fib(n): return next(itertools.islice(numbers(), n, None))",
    ),
    "deep recursion": (
        _calls("total", ([5000], 12502500)),
        "import sys\nsys.setrecursionlimit(20000)\n"
        "def total(n): return 0 if n == 0 else n + total(n - 1)",
    ),
    "a dict": (
        _WORDS,
        "def count(text):\n"
        "    found = {}\n"
        "    for w in text.split(): found[w] = found.get(w, 0) + 1\n    return found",
    ),
    "a Counter": (
        _WORDS,
        "from collections import Counter\ndef count(t): return Counter(t.split())",
    ),
    "a defaultdict": (
        _WORDS,
        "from collections import defaultdict\n"
        "def count(t):\n"
        "    found = defaultdict(int)\n    for w in t.split(): found[w] += 1\n    return found",
    ),
    "tuples, sets, bytes and odd keys": (
        _calls(
            "shapes",
            ([{"$tuple": [1, "é"]}], {"$tuple": [{"$set": [1, 2]}, {"$bytes": "AP8="}]}),
            ([[]], {"$dict": [[1, {"$float": "inf"}], [{"$tuple": []}, {"$complex": [1.0, 2.0]}]]}),
        ),
        "def shapes(v):\n"
        "    if isinstance(v, tuple): return {1, 2}, bytes([0, 255])\n"
        "    return {1: float('inf'), (): 1 + 2j}",
    ),
    "floats": (
        _calls("mean", ([[0.1, 0.2, 0.3]], 0.2), ([[1, 2]], 1.5), float_tolerance=1e-9),
        "def mean(n): return sum(n) / len(n)",
    ),
    "big integers": (
        _calls("power", ([2, 300], 2**300), ([7, 77], 7**77)),
        "def power(a, b): return a ** b",
    ),
    "keyword arguments": (
        json.dumps(
            {
                "entry_point": "join",
                "tests": [{"args": [["a", "b"]], "kwargs": {"sep": "-"}, "expect": "a-b"}],
            }
        ),
        "def join(parts, *, sep): return sep.join(parts)",
    ),
    "a method": (
        _calls("Solution.add", ([1, 2], 3), (["a", "b"], "ab")),
        "class Solution:\n    def add(self, a, b):\n        return a + b",
    ),
    "a dataclass inside": (
        _calls("norm", ([3, 4], 5.0)),
        "from dataclasses import dataclass\n"
        "@dataclass(order=True)\nclass Point:\n    x: int\n    y: int\n"
        "def norm(x, y):\n    p = Point(x, y)\n    return (p.x ** 2 + p.y ** 2) ** 0.5",
    ),
    "continues a prefix": (
        _calls("double", ([4], 8), prefix='def double(n):\n    """Twice n."""\n'),
        "    return 2 * n\n",
    ),
    "repeats the prefix": (
        _calls(
            "double", ([4], 8), prefix='from math import pi\ndef double(n):\n    """Twice."""\n'
        ),
        "```python\ndef double(n):\n    return int(round(2 * n * pi / pi))\n```",
    ),
    "a program": (PROGRAM, "n = int(input())\nprint(sum(map(int, input().split())))"),
    "a program that reads all": (
        PROGRAM,
        "import sys\ndata = sys.stdin.read().split()\nprint(sum(map(int, data[1:])))",
    ),
    "a program with main": (
        PROGRAM,
        "import sys\ndef main():\n    lines = sys.stdin.readlines()\n"
        "    print(sum(int(x) for x in lines[1].split()))\n"
        "if __name__ == '__main__':\n    main()",
    ),
    "a program with blank ends": (
        PROGRAM,
        "input()\nprint(sum(map(int, input().split())), end='  \\n\\n')",
    ),
    "a program that talks on stderr": (
        PROGRAM,
        "import sys\ninput()\nprint('debug', file=sys.stderr)\n"
        "print(sum(map(int, input().split())))",
    ),
    "a program that calls exit": (
        PROGRAM,
        "input()\nprint(sum(map(int, input().split())))\nexit()",
    ),
    "a program with a big stack in a thread": (
        PROGRAM,
        "import sys, threading\nsys.setrecursionlimit(10**5)\nthreading.stack_size(2**26)\n"
        "def main():\n    input()\n    print(sum(map(int, input().split())))\n"
        "threading.Thread(target=main).start()",
    ),
    "a program that exits with 0": (
        PROGRAM,
        "import sys\ninput()\nprint(sum(map(int, input().split())))\nsys.exit()",
    ),
}
