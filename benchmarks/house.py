"""Count what makes the package easy or hard to find one's way in: `python -m benchmarks.house`.

Prints the lines of the package, the modules that only one other module imports, how many of these
are neither an entry of a table nor re-exported to others, and the files that name a given stage as
a string.
"""

from __future__ import annotations

import argparse
import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
TABLES = {
    "posttrain.__main__",
    "posttrain.cli",
    "posttrain.curriculum",
    "posttrain.engines",
    "posttrain.pipeline.stages",
    "posttrain.report.page",
    "posttrain.rewards",
    "posttrain.sandbox",
}
"""Modules that list others: commands, curricula, engines, stages, sections, verifiers and so on."""


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


def users(files: dict[str, Path]) -> dict[str, set[str]]:
    """Return, for every module, its importers; an import of a re-exported name is one of its home.

    A package that only re-exports a module is no user of it.
    """
    trees = {module: ast.parse(path.read_text()) for module, path in files.items()}
    homes = {
        (package, alias.asname or alias.name): node.module
        for package, tree in trees.items()
        if files[package].name == "__init__.py"
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module in files
        for alias in node.names
        if alias.name in _exported(tree)
    }
    found: dict[str, set[str]] = defaultdict(set)
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for target in _imports(node, files):
                    found[target].add(module)
            elif isinstance(node, ast.ImportFrom) and node.module in files:
                for alias in node.names:
                    if (module, alias.name) in homes:
                        continue
                    inner = f"{node.module}.{alias.name}"
                    home = homes.get((node.module, alias.name), node.module)
                    found[inner if inner in files else home].add(module)
    return found


def _exported(tree: ast.Module) -> set[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


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
    through = users(files)
    lone = [module for module in single if len(through[module]) < 2 and not by[module] & TABLES]
    stage_files = naming(files, asked.stage)
    lines = sum(len(path.read_text().splitlines()) for path in files.values())
    print(f"lines                       {lines}")
    print(f"modules                     {len(files)}")
    print(f"modules with one importer   {len(single)}")
    print(f"of these, neither entries of a table nor re-exported   {len(lone)}")
    print(f'files that name "{asked.stage}"      {len(stage_files)}')
    if asked.list:
        for module in single:
            mark = "" if module in lone else "   (a table's entry, or re-exported)"
            print(f"  {module} <- {next(iter(by[module]))}{mark}")
        for path in stage_files:
            print(f"  {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
