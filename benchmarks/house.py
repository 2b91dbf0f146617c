"""Count what makes the package easy or hard to find one's way in: `python -m benchmarks.house`.

Prints the lines of the package, the modules that only one other module imports, and the files that
name a given stage as a string.
"""

from __future__ import annotations

import argparse
import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent


def package_files() -> dict[str, Path]:
    """Return every module of the package with its file."""
    found: dict[str, Path] = {}
    for path in sorted((ROOT / "posttrain").rglob("*.py")):
        if "_shipped" not in path.parts:
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def importers(files: dict[str, Path]) -> dict[str, set[str]]:
    """Return, for every module, the modules that import it or a name from it."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, path in files.items():
        for target in _imports(ast.parse(path.read_text()), files):
            if target != module:
                found[target].add(module)
    return found


def _imports(tree: ast.AST, files: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom) and node.module in files:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in files else node.module


def naming(files: dict[str, Path], stage: str) -> list[Path]:
    """Return the files that hold `stage` as a string literal, the stage's own left out."""
    own = {ROOT / f"posttrain/{stage}.py", ROOT / f"posttrain/pipeline/stages/{stage}.py"}
    return [
        path
        for path in files.values()
        if path not in own
        and any(
            isinstance(node, ast.Constant) and node.value == stage
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", default="dpo", help="the stage whose name is looked for")
    parser.add_argument("--list", action="store_true", help="name the modules and files, too")
    asked = parser.parse_args()
    files = package_files()
    by = importers(files)
    single = sorted(module for module in files if len(by[module]) == 1)
    stage_files = naming(files, asked.stage)
    lines = sum(len(path.read_text().splitlines()) for path in files.values())
    print(f"lines                       {lines}")
    print(f"modules                     {len(files)}")
    print(f"modules with one importer   {len(single)}")
    print(f'files that name "{asked.stage}"      {len(stage_files)}')
    if asked.list:
        for module in single:
            print(f"  {module} <- {next(iter(by[module]))}")
        for path in stage_files:
            print(f"  {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
