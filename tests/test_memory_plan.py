"""Stages against devices, advice, and what the commands do with them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trl import SFTConfig

from posttrain.cli import main
from posttrain.memory import (
    GB,
    Devices,
    Phase,
    Shapes,
    fits,
    parse_devices,
    plan_memory,
    published_shapes,
    suggestions,
)
from posttrain.memory.advice import changed
from posttrain.memory.per_device import pass_of
from posttrain.memory.shapes import matrices
from posttrain.pipeline import fit
from posttrain.recipe import load_recipe, shipped_files
from posttrain.recipe.schema import Recipe

SCOUT = "meta-llama/Llama-4-Scout-17B-16E-Instruct"
PLACED = [path for path in shipped_files("recipes") if "_lora_" in path.stem]


def shapes_of(name: str) -> Shapes:
    found = published_shapes(name)
    assert found is not None
    return found


# ---- stages


def load(name: str, **settings: Any) -> Recipe:
    recipe = load_recipe(Path(f"{name}.yaml")).recipe
    found = changed(recipe, {key.replace("__", "."): value for key, value in settings.items()})
    assert found is not None
    return found


def phases_of(recipe: Recipe, devices: str) -> dict[str, Phase]:
    shapes = shapes_of(str(recipe.model.base))
    return {phase.name: phase for phase in plan_memory(shapes, recipe, parse_devices(devices))}


@pytest.mark.parametrize("path", PLACED, ids=lambda path: path.stem)
def test_a_recipe_fits_the_devices_it_is_named_after(path: Path) -> None:
    recipe = load_recipe(path).recipe
    assert recipe.model.lora is not None
    assert {"attention", "shared_expert", "experts"} <= set(recipe.model.lora.targets)
    phases = phases_of(recipe, path.stem.rpartition("_")[2])
    assert list(phases) == ["judge", "sft", "rl: rollouts", "rl: update", "dpo", "eval"]
    for phase in phases.values():
        assert phase.fits, phase
        assert phase.margin is not None
        # Fragments, and allowances that were not measured, must not decide.
        assert phase.margin > 0.04 * phase.total, phase


def test_offloaded_weights_count_as_host_memory() -> None:
    turns = phases_of(load("scout_lora_1x80gb"), "1x80gb")
    beside = phases_of(load("scout_lora_1x80gb", rl__offload_policy=False), "1x80gb")
    weights = turns["sft"].lines["weights"] + turns["sft"].lines["adapters"]
    freed = beside["rl: rollouts"].total - turns["rl: rollouts"].total
    assert freed == weights
    assert turns["rl: rollouts"].host - beside["rl: rollouts"].host == weights
    awake = phases_of(load("scout_lora_1x80gb", engine__enable_sleep_mode=False), "1x80gb")
    assert awake["rl: update"].total - turns["rl: update"].total == int(0.9 * 80e9) - 1 * GB
    assert (
        turns["rl: update"].host - awake["rl: update"].host
        == turns["judge"].lines["engine weights"]
    )
    assert not beside["rl: rollouts"].fits
    assert not awake["rl: update"].fits


def test_fsdp_divides_weights_and_gathers_two_layers() -> None:
    sharded = phases_of(load("scout_lora_8x80gb"), "8x80gb")["sft"].lines
    whole = phases_of(load("scout_lora_8x80gb", launch__strategy="ddp"), "8x80gb")["sft"].lines
    for line in ("weights", "adapters", "optimizer"):
        assert sharded[line] == pytest.approx(whole[line] / 8, rel=1e-6)
    assert sharded["gradients"] == pytest.approx(whole["gradients"] / 16, rel=1e-6)  # no buckets
    shapes = shapes_of(SCOUT)
    layer = sum(e * i * o for weights in matrices(shapes, 0).values() for e, i, o in weights)
    outer = 2 * 202048 * 5120 + 97 * 5120
    assert sharded["gathered"] == 2 * (2 * layer + outer)
    assert "gathered" not in whole


def test_an_engine_over_more_devices_has_less_on_each() -> None:
    one = phases_of(load("scout_lora_1x141gb"), "8x141gb")["judge"]
    spec = load("scout_lora_1x141gb", engine__tensor_parallel_size=8, launch__num_processes=8,
                rl__offload_policy=False)  # fmt: skip
    eight = phases_of(spec, "8x141gb")["judge"]
    assert eight.lines["engine weights"] == one.lines["engine weights"] // 8
    assert eight.kv_tokens
    assert one.kv_tokens
    assert eight.kv_tokens > 8 * one.kv_tokens


def test_missing_devices_and_a_small_kv_cache_are_problems() -> None:
    few = phases_of(load("scout_lora_8x80gb"), "4x80gb")
    assert all("asks for 8 devices" in phase.problem for phase in few.values())
    assert not any(phase.fits for phase in few.values())
    small = phases_of(load("scout_lora_1x80gb", engine__gpu_memory_utilization=0.5), "1x80gb")
    assert "KV cache of 0 tokens" in small["judge"].problem
    assert small["judge"].margin
    assert small["judge"].margin > 0
    assert not small["judge"].fits
    assert small["sft"].fits


def test_engine_weight_bytes_read_a_checkpoints_name(tmp_path: Path) -> None:
    def weights(name: str | None, **more: Any) -> Phase:
        recipe = load(
            "scout_lora_1x141gb", engine__quantization=None, engine__checkpoint=name, **more
        )
        return phases_of(recipe, "1x141gb")["judge"]

    linears = 96.63676416e9 + 6.03979776e9 + 3.01989888e9
    rest = 2 * (107.76986112e9 - linears)
    for name, bits in (("org/x-w4a16", 4.25), ("org/X-FP8-dynamic", 8), (None, 16)):
        found = weights(name).lines["engine weights"]
        assert found == pytest.approx(linears * bits / 8 + rest, rel=1e-6), name
    assert "unquantised" in weights("org/something").assumed[0]
    (tmp_path / "a.safetensors").write_bytes(b"x" * 1234)
    assert weights(str(tmp_path)).lines["engine weights"] == 1234


def test_longer_passes_and_no_checkpointing_need_more() -> None:
    def work(**settings: Any) -> int:
        lines = phases_of(load("scout_lora_1x141gb", **settings), "1x141gb")["sft"].lines
        return lines["activations"] + lines["live layer"]

    assert work(sft__trainer__max_length=8192) > 1.9 * work()
    assert work(sft__trainer__per_device_train_batch_size=2) > 1.9 * work()
    assert work(sft__trainer__gradient_checkpointing=False) > 10 * work()


def test_pass_of_each_stage() -> None:
    sft, rl, dpo = (pass_of(load("scout_lora_1x141gb"), stage) for stage in ("sft", "rl", "dpo"))
    assert (sft.sequences, sft.length, sft.is_masked) == (1, 4096, False)
    assert (rl.sequences, rl.length, rl.is_masked) == (1, 4096, True)
    assert (dpo.sequences, dpo.length, dpo.is_masked) == (2, 2048, True)
    packed = pass_of(load("scout_lora_1x141gb", sft__trainer__packing=True), "sft")
    assert packed.is_masked
    defaults = pass_of(load("scout_lora_1x141gb", sft__trainer={}), "sft")
    assert (defaults.sequences, defaults.length) == (
        SFTConfig(use_cpu=True).per_device_train_batch_size,
        1024,
    )


def test_gradient_checkpointing_is_on_by_default_as_in_trl() -> None:
    on = phases_of(load("scout_lora_1x141gb", sft__trainer={}), "1x141gb")["sft"]
    said = {"gradient_checkpointing": SFTConfig(use_cpu=True).gradient_checkpointing}
    same = phases_of(load("scout_lora_1x141gb", sft__trainer=said), "1x141gb")["sft"]
    assert on.lines == same.lines


def test_without_devices_there_is_no_verdict() -> None:
    for phase in plan_memory(shapes_of(SCOUT), load("scout_lora_1x80gb")):
        assert (phase.fits, phase.margin) == (None, None)
        assert phase.total > 50 * GB


# ---- advice


MISFITS: list[tuple[str, str, dict[str, Any]]] = [
    ("scout_lora_1x141gb", "1x80gb", {}),
    ("scout_lora_1x141gb", "1x141gb", {"model__frozen": None}),
    ("scout_lora_8x80gb", "8x80gb", {"engine__enable_sleep_mode": False}),
    ("scout_lora_8x80gb", "2x141gb", {}),
    ("scout_lora_4x80gb", "1x80gb", {}),
    ("scout_lora_8x80gb", "8x80gb", {"sft__trainer__per_device_train_batch_size": 64}),
]


@pytest.mark.parametrize(("name", "devices", "settings"), MISFITS)
def test_suggestions_make_the_recipe_fit(name: str, devices: str, settings: dict[str, Any]) -> None:
    recipe, there = load(name, **settings), parse_devices(devices)
    shapes = shapes_of(str(recipe.model.base))
    before = plan_memory(shapes, recipe, there)
    assert not fits(before)
    advised = suggestions(shapes, recipe, there)
    assert advised
    for suggestion in advised:
        assert suggestion.fits
        after = changed(recipe, suggestion.changes)
        assert after is not None
        planned = plan_memory(shapes, after, there)
        assert fits(planned)
        assert min(p.margin or 0 for p in planned) == suggestion.margin
        saved = max(p.total for p in before) - max(p.total for p in planned)
        assert saved == suggestion.saves


def test_suggestions_never_claim_a_fit_that_is_none() -> None:
    advised = suggestions(shapes_of(SCOUT), load("scout_lora_1x80gb"), parse_devices("1x24gb"))
    assert advised
    assert not any(suggestion.fits for suggestion in advised)


# ---- the commands


def command(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["posttrain", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_plan_ends_with_3_where_it_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["plan", "scout_lora_1x80gb.yaml", "--devices"]
    assert command(*asked, "1x80gb", monkeypatch=monkeypatch) == 0
    capsys.readouterr()
    assert command(*asked, "1x64gb", monkeypatch=monkeypatch) == 3
    said = capsys.readouterr()
    assert "sft" in said.err.splitlines()[-2]
    assert "64.0 GB" in said.err.splitlines()[-2]
    assert "--force" in said.err.splitlines()[-1]
    assert command(*asked, "1x64gb", "--force", monkeypatch=monkeypatch) == 0
    capsys.readouterr()
    assert command(*asked, "64gb", monkeypatch=monkeypatch) == 2


def test_the_plan_as_json_holds_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["plan", "scout_lora_1x141gb.yaml", "--json", "--devices", "1x80gb"]
    assert command(*asked, monkeypatch=monkeypatch) == 3
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert memory["num_parameters"] == 107_769_861_120
    assert memory["fits"] is False
    assert {stage["stage"] for stage in memory["stages"]} >= {"sft", "rl: update"}
    for stage in memory["stages"]:
        assert sum(stage["bytes"].values()) == stage["total"] == stage["capacity"] - stage["margin"]
    assert memory["suggestions"][0]["changes"]["engine.sync"] == "adapter"


def test_run_refuses_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    started: list[Path] = []
    monkeypatch.setattr(fit, "devices_here", lambda: Devices(count=1, capacity=40 * GB))
    monkeypatch.setattr(
        "posttrain.pipeline.run", lambda loaded, folder, until: started.append(folder)
    )
    monkeypatch.setattr("posttrain.cli.status.show_results", lambda done: None)
    asked = ["run", "scout_lora_1x80gb.yaml"]
    assert command(*asked, monkeypatch=monkeypatch) == 3
    assert not started
    assert "posttrain run scout_lora_1x80gb.yaml --force" in capsys.readouterr().err
    assert command(*asked, "--force", monkeypatch=monkeypatch) == 0
    assert len(started) == 1


def test_a_plan_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.argv = 'posttrain plan maverick_lora_8x141gb.yaml --devices 8x141gb'.split()\n"
        "from posttrain.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "400,711,848,960" in done.stdout
