"""Imports go downwards only: the floor table of the design, held mechanically."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "posttrain"

# The ground may be imported by all; floor 0 modules other than these do not know each other.
GROUND = {"records", "errors", "kill_points", "spec", "__version__"}
FLOORS = [
    GROUND | {"tables", "progress"},
    {"sandbox", "run_directory"},
    {"rewards", "curriculum"},
    {"recipe"},
    {"prune", "preferences", "metrics", "memory"},
    {"artefacts"},
    {"data", "models"},
    {"engines", "lengths", "training"},
    {"judge", "sft", "rl", "dpo", "report"},
    {"pipeline"},
    {"bench"},
    {"cli"},
    {"__main__"},
]
HEAVY = {"torch", "transformers", "trl", "vllm", "datasets"}
FLOOR_OF = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
LOW = {module for floor in FLOORS[:6] for module in floor}
FILES = sorted(p for p in ROOT.rglob("*.py") if "_shipped" not in p.parts)


def module_name(path: Path) -> str:
    """`posttrain/rewards/math.py` -> `posttrain.rewards.math`; a package is named by its folder."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in FILES}


def house_of(module: str) -> str | None:
    """The entry of the floor table a module belongs to; None for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def imports_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module with its line, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"line {node.lineno}: a relative import"
            for alias in node.names:
                # `from posttrain.rl import train` may name a module or something in one.
                full = f"{node.module}.{alias.name}"
                is_module = full in MODULES or node.module == "posttrain"
                yield (full if is_module else node.module), node.lineno


def violations(name: str, source: str) -> list[str]:
    """What the floor table forbids among the imports of one module."""
    found: list[str] = []
    own = house_of(name)
    for target, line in imports_of(ast.parse(source)):
        top = target.split(".")[0]
        at = f"{name}:{line}"
        if top in ("benchmarks", "tests"):
            found.append(f"{at}: {target} is not shipped")
        if top != "posttrain":
            if top in HEAVY and own in LOW:
                found.append(f"{at}: {top} on floor {FLOOR_OF[own]}")
            continue
        house = house_of(target)
        if house is None or house == own or house in GROUND:
            continue
        if own not in FLOOR_OF:
            found.append(f"{at}: {own or 'the package itself'} is not in the floor table")
        elif house not in FLOOR_OF:
            found.append(f"{at}: {house} is not in the floor table")
        elif FLOOR_OF[house] >= FLOOR_OF[own]:
            found.append(f"{at}: floor {FLOOR_OF[own]} imports {target} of floor {FLOOR_OF[house]}")
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    assert violations(module_name(path), path.read_text()) == []


def test_every_module_has_a_floor() -> None:
    houses = {house_of(module) for module in MODULES} - {None}
    assert houses <= set(FLOOR_OF), "add the new module to the floor table, here and in AGENTS.md"


def test_no_cycles() -> None:
    """Not between packages (the floors see to that) and not inside one."""
    graph = {
        module_name(path): {
            target
            for target, _ in imports_of(ast.parse(path.read_text()))
            if target in MODULES and target != module_name(path)
        }
        for path in FILES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("posttrain.metrics", "from posttrain.data import load_data", "floor 4 imports"),
        ("posttrain.metrics", "import posttrain.prune", "floor 4 imports"),
        ("posttrain.tables", "def f():\n    import torch", "torch on floor 0"),
        ("posttrain.prune", "if TYPE_CHECKING:\n    from transformers import X", "transformers on"),
        ("posttrain.rl.trainer", "from posttrain import cli", "floor 8 imports"),
        ("posttrain.data", "from posttrain import novelty", "novelty is not in the floor table"),
        ("posttrain.rewards.math", "from posttrain.memory import plan", "floor 2 imports"),
        ("posttrain.cli.bench", "from benchmarks.cli import bench", "benchmarks.cli is not"),
        ("posttrain.metrics", "from posttrain.records import Sample", None),
        ("posttrain.cli.run", "from posttrain.pipeline import run", None),
    ],
)
def test_the_check_itself(module: str, source: str, complaint: str | None) -> None:
    found = violations(module, source)
    assert bool(found) == (complaint is not None)
    assert complaint is None or complaint in found[0]


def test_low_floors_load_nothing_heavy() -> None:
    """Not even through a third party: import all floors below data and look."""
    low = sorted(m for m in MODULES if (house_of(m) or "errors") in LOW)
    code = (
        "import importlib, sys\n"
        f"for name in {low!r}: importlib.import_module(name)\n"
        f"print(*sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("command", [["--help"], ["check", "recipes/quickstart.yaml"]])
def test_quick_commands_load_no_torch(command: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['posttrain', *{command!r}]\n"
        "from posttrain.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('HEAVY', *sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].split() == ["HEAVY"]
