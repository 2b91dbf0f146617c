from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import Llama4ForCausalLM, Llama4TextConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama4.modeling_llama4 import Llama4TextAttention

from posttrain.errors import RecipeError
from posttrain.memory import (
    GB,
    Devices,
    Shapes,
    active_parameters,
    adapter_parameters,
    flops_per_token,
    kv_bytes_per_token,
    parameters_by_kind,
    parse_devices,
    published_shapes,
    shapes_in,
)
from posttrain.memory.per_device import training_weight_bytes, weight_bytes
from posttrain.memory.shapes import CONFIGS, PUBLISHED, read_shapes
from posttrain.models.moe_monitor import weight_kind
from posttrain.models.policy import PolicyPath, load_policy
from posttrain.models.quantized import FORMATS, Format
from posttrain.pipeline import environment
from posttrain.recipe.models import Frozen, Lora, Model

SCOUT = "meta-llama/Llama-4-Scout-17B-16E-Instruct"
MAVERICK = "meta-llama/Llama-4-Maverick-17B-128E-Instruct"


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
def test_parameters_of_published_models(name: str, billions: dict[str, float]) -> None:
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
def test_flops_of_published_models(
    length: int, frozen: float, recomputed: float, full: float
) -> None:
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
def test_bytes_of_scouts_weights(frozen: Frozen | None, gigabytes: float, within: float) -> None:
    model = Model(base=SCOUT, frozen=frozen)
    found = training_weight_bytes(shapes_of(SCOUT), model) / GB
    assert found == pytest.approx(gigabytes, rel=within)


@pytest.mark.parametrize(("rank", "millions"), [(8, 242), (16, 484), (32, 967)])
def test_parameters_of_scouts_adapters(rank: int, millions: float) -> None:
    lora = Lora(rank=rank, targets=["attention", "shared_expert", "experts"])
    found = adapter_parameters(shapes_of(SCOUT), lora)
    assert sum(found.values()) / 1e6 == pytest.approx(millions, abs=0.6)
    assert found["experts"] / sum(found.values()) == pytest.approx(0.88, abs=0.006)


def test_kv_bytes_per_token() -> None:
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
        kind = "biases" if name.endswith("bias") else weight_kind(name)
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
def test_weight_bytes_equal_those_of_quantised_weights(
    format: Format, shape: tuple[int, int, int]
) -> None:
    packed = FORMATS[format](torch.randn(shape).to(torch.bfloat16))
    real = sum(p.nbytes for p in packed.parameters())
    assert weight_bytes(shape, format, 2) == real


# ---- devices


@pytest.mark.parametrize(
    ("text", "count", "capacity"),
    [("8x80gb", 8, 80e9), ("1X141GB", 1, 141e9), ("2x79.5gib", 2, 79.5 * 2**30)],
)
def test_parse_devices(text: str, count: int, capacity: float) -> None:
    assert parse_devices(text) == Devices(count=count, capacity=int(capacity))


@pytest.mark.parametrize("text", ["80gb", "0x80gb", "8x80", "x80gb", "8x-80gb", "8x0gb", ""])
def test_parse_devices_refuses_other_forms(text: str) -> None:
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
