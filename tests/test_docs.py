"""What the pages say holds: commands exist, links lead somewhere, the reference is current."""

from __future__ import annotations

import functools
import importlib.util
import re
import runpy
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from posttrain import cli
from tests.builders import Said, call_command

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page
    for folder in ("", "docs", "benchmarks")
    for page in (ROOT / folder).glob("*.md")
    if page.name != "extending.md"  # tests/test_extending.py runs its commands
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Read-only, quick, and needing nothing but the checkout.
RUNNABLE = {"check", "schema"}


def shell_lines(page: Path) -> Iterator[str]:
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), re.M | re.S):
        yield from (line for line in block.splitlines() if line.strip())


COMMANDS = sorted({(page.name, line) for page in PAGES for line in shell_lines(page)})
POSTTRAIN = sorted({line for _, line in COMMANDS if line.startswith("posttrain ")})
BEDS = sorted({line for _, line in COMMANDS if line.startswith("python -m benchmarks.")})


Invoke = Callable[[str], Said]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Call `posttrain ...` or `python -m benchmarks. ...` in this process, in the checkout."""
    monkeypatch.chdir(ROOT)

    def call(line: str) -> Said:
        words = shlex.split(line)
        if words[0] == "posttrain":
            return call_command(monkeypatch, capsys, cli.main, *words[1:])
        _, _, module, *arguments = words
        bed = functools.partial(runpy.run_module, module, run_name="__main__", alter_sys=True)
        return call_command(monkeypatch, capsys, bed, *arguments)

    return call


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_every_command_is_of_a_kind_that_is_checked(page: str, line: str) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
        assert {word for word in words[1:] if "=" not in word} <= targets
    elif words[:2] == ["pip", "install"]:
        extras = re.fullmatch(r"\.\[([\w,-]+)\]", words[-1])
        assert extras, line
        assert set(extras[1].split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    else:
        assert line in (*POSTTRAIN, *BEDS), f"{page}: no test covers {line!r}"


@pytest.mark.parametrize("line", POSTTRAIN)
def test_every_posttrain_command_exists(invoke: Invoke, line: str) -> None:
    """Its verb has a help page that lists each option; the recipes and folders it names exist."""
    words = shlex.split(line)[1:]
    verb = words[:2] if words[0] in ("bench", "model") else words[:1]
    help_page = invoke(shlex.join(["posttrain", *verb, "--help"]))
    assert help_page.code == 0, help_page.err
    for word in words[len(verb) :]:
        if word.startswith("--"):
            assert word in help_page.out
        elif word.endswith(".yaml"):
            assert (ROOT / word).exists() or (ROOT / "recipes" / word).exists()


@pytest.mark.parametrize("line", BEDS)
def test_every_benchmark_bed_has_the_options_that_pages_name(invoke: Invoke, line: str) -> None:
    words = shlex.split(line)
    help_page = invoke(shlex.join([*words[:3], "--help"]))
    assert help_page.code == 0, help_page.err
    assert all(word in help_page.out for word in words[3:] if word.startswith("--"))


@pytest.mark.parametrize("line", [c for c in POSTTRAIN if c.split()[1] in RUNNABLE])
def test_quick_commands_succeed(invoke: Invoke, line: str) -> None:
    done = invoke(line)
    assert done.code == 0, done.out + done.err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]*)(#[\w-]*)?\)", page.read_text())
    for target, anchor in targets:
        if target.startswith("http"):
            continue
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
            assert anchor[1:] in {h.lower().replace(" ", "-") for h in headings}


def test_the_reference_is_current() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "make_reference.py")
    assert spec
    assert spec.loader
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    assert reference.PAGE.read_text() == reference.page(), "run: make docs"
    assert reference.VERIFIER_PAGE.read_text() == reference.verifier_page(), "run: make docs"


def memory_page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("memory_page", ROOT / "docs" / "make_memory.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plans_in_the_docs_are_what_the_commands_print() -> None:
    written = memory_page()
    text = written.PAGE.read_text()
    commands = [found[2] for found in written.BLOCK.finditer(text)]
    assert {"scout", "maverick"} == {command.split("/")[1].split("_")[0] for command in commands}
    assert all("GFLOP for one token" in found[3] for found in written.BLOCK.finditer(text))
    assert text == written.page(text), "run: make docs"


def test_the_heads_of_recipes_tell_their_memory() -> None:
    written = memory_page()
    assert len(written.PLACED) == 5
    for recipe in written.PLACED:
        assert recipe.read_text() == written.with_head(recipe), "run: make docs"


def test_the_tree_in_the_readme_is_the_tree() -> None:
    """Each module of the package stands in the README with one line, and nothing else does."""
    block = re.search(r"^posttrain/ .*?^recipes/", (ROOT / "README.md").read_text(), re.M | re.S)
    assert block
    told = set(re.findall(r"^  ([\w.]+)/? ", block[0], re.M))
    modules = {
        path.name
        for path in (ROOT / "posttrain").iterdir()
        if path.name[0] != "_" and (path.suffix == ".py" or (path / "__init__.py").exists())
    }
    assert told == modules


def test_every_doctest_is_run() -> None:
    """The one module that pytest does not collect has no worked example that could rot."""
    options = PROJECT["tool"]["pytest"]["ini_options"]
    assert "posttrain" in options["testpaths"]
    ignored = [a.partition("=")[2] for a in options["addopts"] if a.startswith("--ignore=")]
    assert not [path for path in ignored if ">>> " in (ROOT / path).read_text()]


def test_makefile_and_ci_run_the_same_tests() -> None:
    assert re.search(r'^make test VENV="\$venv"$', (ROOT / ".ci" / "run").read_text(), re.M)
    assert (
        subprocess.run(["bash", "-n", ".ci/run", ".ci/env"], cwd=ROOT, check=False).returncode == 0
    )


def test_the_floor_table_and_the_type_checker_agree() -> None:
    """Floors 0 and 1 are checked strictly."""
    spec = importlib.util.spec_from_file_location("floors", ROOT / "tests" / "test_floors.py")
    assert spec
    assert spec.loader
    floors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(floors)
    strict = {Path(path).stem for path in PROJECT["tool"]["pyright"]["strict"]}
    assert strict == floors.LOW - {"__version__"}
