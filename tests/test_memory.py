from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import Llama4ForCausalLM, Llama4TextConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama4.modeling_llama4 import Llama4TextAttention
from trl import SFTConfig

from posttrain.cli import main
from posttrain.errors import RecipeError
from posttrain.memory import (
    GB,
    Devices,
    Phase,
    Shapes,
    active_parameters,
    adapter_parameters,
    fits,
    flops_per_token,
    kv_bytes_per_token,
    parameters_by_kind,
    parse_devices,
    pass_of,
    plan_memory,
    published_shapes,
    shapes_in,
    suggestions,
)
from posttrain.memory.advice import changed
from posttrain.memory.published import CONFIGS, PUBLISHED
from posttrain.memory.shapes import matrices, read_shapes
from posttrain.memory.weights import packed_bytes, training_weight_bytes
from posttrain.models.packed import FORMATS, Format
from posttrain.models.policy import PolicyPath, load_policy
from posttrain.models.shapes import kind_of
from posttrain.pipeline import environment, fit
from posttrain.recipe import load_recipe, shipped_files
from posttrain.recipe.schema import Frozen, Lora, Model, Recipe

SCOUT = "meta-llama/Llama-4-Scout-17B-16E-Instruct"
MAVERICK = "meta-llama/Llama-4-Maverick-17B-128E-Instruct"
PLACED = [path for path in shipped_files("recipes") if "_lora_" in path.stem]


def shapes_of(name: str) -> Shapes:
    found = published_shapes(name)
    assert found is not None
    return found


# ---- counts


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        (SCOUT, {"all": 107.77, "experts": 96.64, "shared_expert": 6.04, "attention": 3.02}),
        (MAVERICK, {"all": 400.7}),
    ],
)
def test_published_totals(name: str, billions: dict[str, float]) -> None:
    kinds = parameters_by_kind(shapes_of(name))
    found = {**kinds, "all": sum(kinds.values())}
    for kind, count in billions.items():
        digits = len(str(count).partition(".")[2])
        assert found[kind] / 1e9 == pytest.approx(count, abs=0.51 * 10**-digits), kind
    active = active_parameters(shapes_of(name))
    # Maverick's are given as 17.17, too, and are 17.18: its router has 128 rows.
    assert (active + kinds["embeddings"]) / 1e9 == pytest.approx(17.17, abs=0.02)
    assert active / 1e9 == pytest.approx(16.14, abs=0.02)


@pytest.mark.parametrize(
    ("length", "frozen", "recomputed", "full"),
    [(2048, 67.6, 100.9, 99.8), (4096, 70.6, 104.9, 102.9), (8192, 76.6, 112.9, 108.9)],
)
def test_published_operations(length: int, frozen: float, recomputed: float, full: float) -> None:
    found = flops_per_token(shapes_of(SCOUT), sequence_length=length)
    giga = (found.frozen / 1e9, found.frozen_recomputed / 1e9, found.full / 1e9)
    assert giga == pytest.approx((frozen, recomputed, full), abs=0.051)


@pytest.mark.parametrize(
    ("frozen", "gigabytes", "within"),
    [
        (None, 215.5, 0.001),
        (Frozen(experts="fp8"), 118.9, 0.001),
        (Frozen(experts="fp8", linears="fp8"), 109.8, 0.001),
        # Published sums take 4.13 bits a weight, with scales packed once more; here it is 4.25.
        (Frozen(experts="nf4"), 72.2, 0.03),
        (Frozen(experts="nf4", linears="nf4"), 58.7, 0.03),
    ],
)
def test_published_bytes_of_scout(frozen: Frozen | None, gigabytes: float, within: float) -> None:
    model = Model(base=SCOUT, frozen=frozen)
    found = training_weight_bytes(shapes_of(SCOUT), model) / GB
    assert found == pytest.approx(gigabytes, rel=within)


@pytest.mark.parametrize(("rank", "millions"), [(8, 242), (16, 484), (32, 967)])
def test_published_adapters_of_scout(rank: int, millions: float) -> None:
    lora = Lora(rank=rank, targets=["attention", "shared_expert", "experts"])
    found = adapter_parameters(shapes_of(SCOUT), lora)
    assert sum(found.values()) / 1e6 == pytest.approx(millions, abs=0.6)
    assert found["experts"] / sum(found.values()) == pytest.approx(0.88, abs=0.006)


def test_keys_and_values() -> None:
    # 48 layers, keys and values, 8 heads of 128, two bytes each.
    assert kv_bytes_per_token(shapes_of(SCOUT), 2) == 48 * 2 * 8 * 128 * 2


SMALL_LLAMA4: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 48,
    "intermediate_size_mlp": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_local_experts": 4,
    "pad_token_id": 1,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"interleave_moe_layer_step": 2},
        {"interleave_moe_layer_step": 4, "use_qk_norm": False},
        {"moe_layers": [0, 3]},
        {"tie_word_embeddings": True},
        {"attention_bias": True},
    ],
)
def test_llama4_is_counted_as_transformers_builds_it(changes: dict[str, Any]) -> None:
    config = Llama4TextConfig(**{**SMALL_LLAMA4, **changes})
    with torch.device("meta"):
        model = Llama4ForCausalLM(config)
    shapes = read_shapes(config.to_dict())
    assert shapes is not None
    expected: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        kind = "biases" if name.endswith("bias") else kind_of(name)
        expected[kind] = expected.get(kind, 0) + parameter.numel()
    assert parameters_by_kind(shapes) == expected
    for index, layer in enumerate(model.model.layers):
        assert shapes.is_moe[index] == layer.is_moe_layer
        assert shapes.is_rotary[index] == bool(cast(Llama4TextAttention, layer.self_attn).use_rope)


@pytest.mark.parametrize("name", sorted(set(PUBLISHED.values())))
def test_a_published_configuration_is_read_as_transformers_reads_it(name: str) -> None:
    written = json.loads((CONFIGS / f"{name}.json").read_text())
    config = Llama4TextConfig(
        **{k: v for k, v in written.items() if k not in ("_note", "model_type")}
    )
    shapes = read_shapes(written)
    assert shapes is not None
    assert shapes.is_rotary == tuple(bool(flag) for flag in config.no_rope_layers or ())
    assert [at for at, is_moe in enumerate(shapes.is_moe) if is_moe] == list(
        config.moe_layers or ()
    )


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True},
                                     {"mlp_bias": True, "head_dim": 24}])  # fmt: skip
def test_a_dense_llama_is_counted_as_transformers_builds_it(changes: dict[str, Any]) -> None:
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, **changes,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    shapes = read_shapes(config.to_dict())
    assert shapes is not None
    assert sum(parameters_by_kind(shapes).values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("targets", [["attention", "mlp", "shared_expert", "experts"], ["router"]])
def test_adapters_are_counted_as_peft_makes_them(tiny_llama4: Path, targets: list[Any]) -> None:
    lora = Lora(rank=4, targets=targets)
    spec = Model(base=str(tiny_llama4), dtype="float32", lora=lora)
    real = load_policy(PolicyPath(base=tiny_llama4), spec, trainable=True)
    shapes = shapes_in(tiny_llama4)
    assert shapes is not None
    counted = sum(adapter_parameters(shapes, lora).values())
    assert counted == sum(p.numel() for p in real.parameters() if p.requires_grad)


@pytest.mark.parametrize("format", ["fp8", "nf4"])
@pytest.mark.parametrize("shape", [(4, 128, 96), (1, 64, 32)])
def test_packed_weights_take_what_is_counted(format: Format, shape: tuple[int, int, int]) -> None:
    packed = FORMATS[format](torch.randn(shape).to(torch.bfloat16))
    real = sum(p.nbytes for p in packed.parameters())
    assert packed_bytes(shape, format, 2) == real


# ---- devices


@pytest.mark.parametrize(
    ("text", "count", "capacity"),
    [("8x80gb", 8, 80e9), ("1X141GB", 1, 141e9), ("2x79.5gib", 2, 79.5 * 2**30)],
)
def test_devices_are_read(text: str, count: int, capacity: float) -> None:
    assert parse_devices(text) == Devices(count=count, capacity=int(capacity))


@pytest.mark.parametrize("text", ["80gb", "0x80gb", "8x80", "x80gb", "8x-80gb", "8x0gb", ""])
def test_other_devices_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--devices"):
        parse_devices(text)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, [81559, 143771]), ("1", [143771]), ("1,0", [143771, 81559]), ("GPU-b", [143771])],
)
def test_the_driver_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[int]
) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\nprintf '0, GPU-a, 81559\\n1, GPU-b, 143771\\n'\n")
    driver.chmod(driver.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(environment, "has_cuda", lambda: True)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert environment.cuda_memory() == [mib * 2**20 for mib in expected]


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


def test_what_is_away_is_in_host_memory() -> None:
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


def test_sharding_divides_what_is_kept_and_gathers_what_is_used() -> None:
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


def test_what_no_total_shows_is_a_problem() -> None:
    few = phases_of(load("scout_lora_8x80gb"), "4x80gb")
    assert all("asks for 8 devices" in phase.problem for phase in few.values())
    assert not any(phase.fits for phase in few.values())
    small = phases_of(load("scout_lora_1x80gb", engine__gpu_memory_utilization=0.5), "1x80gb")
    assert "KV cache of 0 tokens" in small["judge"].problem
    assert small["judge"].margin
    assert small["judge"].margin > 0
    assert not small["judge"].fits
    assert small["sft"].fits


def test_the_names_of_checkpoints_tell_their_bits(tmp_path: Path) -> None:
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


def test_longer_passes_and_no_checkpointing_take_more() -> None:
    def work(**settings: Any) -> int:
        lines = phases_of(load("scout_lora_1x141gb", **settings), "1x141gb")["sft"].lines
        return lines["activations"] + lines["live layer"]

    assert work(sft__trainer__max_length=8192) > 1.9 * work()
    assert work(sft__trainer__per_device_train_batch_size=2) > 1.9 * work()
    assert work(sft__trainer__gradient_checkpointing=False) > 10 * work()


def test_what_goes_through_a_pass() -> None:
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


def test_checkpointing_is_on_as_trl_has_it() -> None:
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
def test_what_is_advised_helps(name: str, devices: str, settings: dict[str, Any]) -> None:
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


def test_what_cannot_fit_is_not_said_to() -> None:
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
    monkeypatch.setattr("posttrain.cli.results.show_results", lambda done: None)
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
