"""docs/extending.md holds: each example is built from the page in a copy, and its commands run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from posttrain.models.tiny import write_tiny_llama4

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()
COPIED = ("posttrain", "recipes", "judges", "curricula", "tests", "pyproject.toml")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$|^`([\w./]+)`$", re.M | re.S)


@dataclass(frozen=True)
class Example:
    files: list[tuple[str, str]]
    changes: list[tuple[str, str]]
    commands: list[str]


def read_example(title: str) -> Example:
    """Return one section of the page: new files, changes and commands, in its order."""
    section = re.split(r"^## ", PAGE, flags=re.M)[1:]
    text = next(part for part in section if part.startswith(title))
    example, name = Example([], [], []), ""
    for kind, body, file in BLOCK.findall(text):
        if file:
            name = file
        elif kind == "diff":
            example.changes.append((name, body))
        elif kind == "console":
            example.commands.extend(body.splitlines())
        else:
            example.files.append((name, body))
    return example


def apply(change: str, text: str) -> str:
    """Apply a diff block; its unchanged and removed lines must stand in `text` once, together."""
    lines = change.splitlines(keepends=True)
    before = "".join(line[1:] or "\n" for line in lines if not line.startswith("+"))
    after = "".join(line[1:] or "\n" for line in lines if not line.startswith("-"))
    assert text.count(before) == 1, f"stands {text.count(before)} times:\n{before}"
    return text.replace(before, after)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in COPIED:
        source, target = ROOT / name, tmp_path / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    return tmp_path


def run(command: str, copy: Path, tiny: str) -> str:
    words = [tiny if word.endswith("TINY") else word for word in shlex.split(command)]
    program = {"python": [sys.executable], "posttrain": [sys.executable, "-m", "posttrain"]}
    done = subprocess.run(
        [*program[words[0]], *words[1:]],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("title", ["A verifier", "A curriculum", "A judge", "A stage"])
def test_an_extension_is_built_from_the_page_alone(title: str, copy: Path) -> None:
    example = read_example(title)
    for name, body in example.files:
        assert not (copy / name).exists(), f"{name} is not new"
        (copy / name).write_text(body)
    for name, change in example.changes:
        (copy / name).write_text(apply(change, (copy / name).read_text()))
    tiny = f"model.base={write_tiny_llama4(copy / 'tiny')}"
    printed = [run(command, copy, tiny) for command in example.commands]
    assert printed
    if title == "A stage":
        assert "lengths" in printed[-1]


@pytest.mark.parametrize(
    ("title", "most"), [("A verifier", 2), ("A curriculum", 3), ("A judge", 3), ("A stage", 3)]
)
def test_an_extension_touches_few_files(title: str, most: int) -> None:
    example = read_example(title)
    data = ("tests/", "cities", "lengths.yaml")
    touched = {name for name, _ in (*example.files, *example.changes) if not name.startswith(data)}
    assert len(touched) <= most, sorted(touched)
