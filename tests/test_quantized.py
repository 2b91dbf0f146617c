from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor, nn
from transformers import Llama4ForCausalLM

from posttrain.errors import SetupError
from posttrain.models import (
    PolicyPath,
    live_tensors,
    load_policy,
    merge,
    merged_tensors,
    resolve_base,
)
from posttrain.models.experts import moe_layers
from posttrain.models.loading import load_base
from posttrain.models.quantized import (
    BLOCK,
    FORMATS,
    NF4_LEVELS,
    Format,
    Fp8,
    Nf4,
    QuantizedLinear,
    format_of,
)
from posttrain.recipe.models import Frozen, Lora, Model

IDS = torch.tensor([[1, 5, 9, 17, 40, 41, 42, 7], [3, 3, 8, 100, 2, 60, 61, 62]])
LARGEST_ERROR: dict[Format, float] = {"fp8": 2**-4, "nf4": 0.16}
"""Of a weight over the largest of its group: half a step of e4m3's 3 bits; NF4's widest gap, 0.304,
halved, and the rounding of its scale."""


def weights(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def largest_error(format: Format, weight: Tensor) -> float:
    packed = FORMATS[format](weight).dense()
    assert packed.shape == weight.shape
    assert packed.dtype == weight.dtype
    block = BLOCK if format == "nf4" else weight.shape[-2]
    split = (*weight.shape[:-2], weight.shape[-2] // block, block, weight.shape[-1])
    scale = weight.float().view(split).abs().amax(-2, keepdim=True)
    error = (packed.float() - weight.float()).view(split).abs() / scale
    return float(error.max())


@pytest.mark.parametrize("format", ["fp8", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(128, 48), (3, 128, 48)])
def test_quantisation_error_is_within_the_formats_precision(
    format: Format, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    assert largest_error(format, weights(shape, dtype)) <= LARGEST_ERROR[format]


@settings(deadline=None, max_examples=30)
@given(exponent=st.integers(-20, 20), seed=st.integers(0, 99))
def test_quantisation_error_is_relative_to_the_channels_scale(exponent: int, seed: int) -> None:
    weight = torch.randn(64, 8, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    for format, limit in LARGEST_ERROR.items():
        assert largest_error(format, weight) <= limit


@pytest.mark.parametrize("format", ["fp8", "nf4"])
def test_zeros_are_quantised_exactly(format: Format) -> None:
    assert FORMATS[format](torch.zeros(2, 64, 4)).dense().abs().max() == 0


def test_nf4_keeps_its_own_levels_exactly() -> None:
    column = torch.tensor(NF4_LEVELS).repeat(4)[:, None] * 2
    torch.testing.assert_close(Nf4(column).dense(), column)


@pytest.mark.parametrize("format", ["fp8", "nf4"])
def test_expert_equals_its_slice_of_dense(format: Format) -> None:
    packed = FORMATS[format](weights((3, 64, 8)))
    for index in range(3):
        assert torch.equal(packed.expert(index), packed.dense()[index])


def test_quantised_weights_have_the_formats_bytes_per_weight() -> None:
    def size(module: nn.Module) -> float:
        return sum(b.nbytes for b in module.state_dict().values()) / (4 * 1024 * 1024)

    weight = weights((4, 1024, 1024), torch.bfloat16)
    assert size(Fp8(weight)) == pytest.approx(1, rel=0.01)
    assert size(Nf4(weight)) == pytest.approx(4.25 / 8, rel=0.01)


def test_nf4_refuses_inputs_that_are_no_whole_blocks() -> None:
    with pytest.raises(ValueError, match="96: use fp8"):
        Nf4(weights((96, 4)))


@pytest.mark.parametrize("format", ["fp8", "nf4"])
def test_quantized_linear_computes_with_the_dequantised_weight(format: Format) -> None:
    linear = nn.Linear(64, 24)
    packed = QuantizedLinear(linear, format)
    plain = nn.Linear(64, 24)
    plain.weight, plain.bias = nn.Parameter(packed.weight.clone()), linear.bias
    x = torch.randn(5, 3, 64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    plain(x).square().sum().backward()
    packed(y).square().sum().backward()
    torch.testing.assert_close(packed(y), plain(x))
    torch.testing.assert_close(y.grad, x.grad)


@pytest.mark.parametrize("frozen", [Frozen(), Frozen(experts="nf4", linears="nf4")])
def test_training_on_a_quantised_base_equals_training_on_its_dequantised_weights(
    tiny_llama4: Path, frozen: Frozen
) -> None:
    """The oracle: the same adapter on plain weights, set to what the packed ones unpack to."""
    lora = Lora(rank=4, alpha=8)
    losses, gradients = [], []
    packed_state: dict[str, Tensor] = {}
    for kept in (frozen, None):
        spec = Model(base=str(tiny_llama4), dtype="float32", lora=lora, frozen=kept)
        torch.manual_seed(0)
        model = load_policy(PolicyPath(base=tiny_llama4), spec, trainable=True)
        assert isinstance(model, PeftModel)
        inner = model.get_base_model()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(weights(tuple(parameter.shape)) * 0.05)
            if kept is not None:
                for name, module in inner.named_modules():
                    if isinstance(module, QuantizedLinear):
                        packed_state[f"{name}.weight"] = module.weight
                    elif isinstance(module, Fp8 | Nf4) and ".experts." in name:
                        packed_state[name] = module.dense()
            else:
                for name, weight in packed_state.items():
                    inner.get_parameter(name).copy_(weight)
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert len(packed_state) >= 4
    torch.testing.assert_close(losses[0], losses[1])
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    "frozen", [Frozen(experts="fp8"), Frozen(experts=None, linears="nf4"), Frozen(linears="fp8")]
)
def test_a_quantised_policy_is_the_same_trained_synced_and_merged(
    tiny_llama4: Path, tmp_path: Path, frozen: Frozen
) -> None:
    """On what packed weights unpack to: trained, handed to an engine, merged to a plain model."""
    lora = Lora(rank=4, alpha=8, targets=["attention", "experts"])
    spec = Model(base=str(tiny_llama4), dtype="float32", lora=lora, frozen=frozen)
    model = load_policy(PolicyPath(base=tiny_llama4), spec, trainable=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(weights(tuple(parameter.shape)) * 0.05)
    model.save_pretrained(str(tmp_path / "adapter"))
    policy = PolicyPath(base=tiny_llama4, adapter=tmp_path / "adapter", frozen=frozen)
    stored = dict(merged_tensors(policy, changed_only=True))
    live = dict(live_tensors(model))
    assert live.keys() <= stored.keys()
    for name, tensor in live.items():
        torch.testing.assert_close(stored[name], tensor, msg=name)
    untouched = list(stored.keys() - live.keys())
    assert all("shared_expert" in name or ".feed_forward." in name for name in untouched)
    assert bool(untouched) == (frozen.linears is not None)
    plain = Llama4ForCausalLM.from_pretrained(
        merge(policy, tmp_path / "merged"), dtype=torch.float32
    )
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        torch.testing.assert_close(plain(input_ids=IDS).logits, expected, atol=1e-4, rtol=1e-4)
        unpacked = merge(PolicyPath(base=tiny_llama4, adapter=policy.adapter), tmp_path / "other")
        other = Llama4ForCausalLM.from_pretrained(unpacked, dtype=torch.float32)
        assert (other(input_ids=IDS).logits - expected).abs().max() > 1e-3


def test_the_router_is_not_quantised() -> None:
    frozen = Frozen(experts="nf4", linears="fp8")
    layer = "language_model.model.layers.1"
    kept = {
        f"{layer}.feed_forward.experts.down_proj": "nf4",
        f"{layer}.feed_forward.router.weight": None,
        f"{layer}.feed_forward.shared_expert.up_proj.weight": "fp8",
        f"{layer}.self_attn.q_proj.weight": "fp8",
        f"{layer}.self_attn.q_proj.bias": None,
        f"{layer}.input_layernorm.weight": None,
        "language_model.lm_head.weight": None,
        "vision_model.model.layers.1.self_attn.q_proj.weight": None,
    }
    assert {name: format_of(name, frozen) for name in kept} == kept
    assert not any(format_of(name, None) for name in kept)


def test_load_base_never_holds_the_frozen_base_in_full(tiny_llama4: Path) -> None:
    model = load_base(tiny_llama4, dtype="float32", frozen=Frozen(experts="fp8", linears="fp8"))
    for moe in moe_layers(model).values():
        kept_in = {p.dtype for p in moe.experts.parameters() if p.dim() == 3 and p.shape[1] > 1}
        assert kept_in == {torch.uint8}
        assert type(moe.router.weight) is nn.Parameter
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        embeddings = model.get_input_embeddings()(IDS).requires_grad_()
        model(inputs_embeds=embeddings)
    experts = next(iter(moe_layers(model).values())).experts
    assert all(t.numel() < experts.gate_up_proj.shape.numel() for t in kept if t.dim() == 3)


def test_load_base_names_a_missing_or_short_shard(tiny_llama4: Path, tmp_path: Path) -> None:
    model = Llama4ForCausalLM.from_pretrained(tiny_llama4, dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    load_base(tmp_path, dtype="float32", frozen=Frozen())
    content = files[1].read_bytes()
    files[1].write_bytes(content[: len(content) // 2])
    for frozen in (None, Frozen()):
        with pytest.raises(SetupError, match=rf"{files[1].name} is damaged or cut short"):
            load_base(tmp_path, dtype="float32", frozen=frozen)
    files[1].unlink()
    with pytest.raises(SetupError, match=rf"{files[1].name} is missing"):
        load_base(tmp_path, dtype="float32", frozen=Frozen())


def test_load_base_refuses_experts_of_another_layout(tiny_llama4: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_llama4, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("experts.gate_up_proj"))
    save_file({**tensors, name: tensors[name].transpose(1, 2).contiguous()}, file, {"format": "pt"})
    with pytest.raises(SetupError, match=r"gate_up_proj has shape \[4, 128, 64\].*\[4, 64, 128\]"):
        load_base(tmp_path / "model", dtype="float32")
    fused = tensors.pop(name)
    apart = {name.replace("gate_up_proj", f"{i}.gate_up.weight"): fused[i] for i in range(4)}
    save_file(tensors | {k: t.contiguous() for k, t in apart.items()}, file, {"format": "pt"})
    with pytest.raises(SetupError, match=r"has no .*gate_up_proj") as caught:
        load_base(tmp_path / "model", dtype="float32")
    assert "one by one" in str(caught.value.hint)


def test_load_base_quantises_llama4_only(tmp_path: Path, tiny_llama4: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    ).save_pretrained(tmp_path)
    with pytest.raises(SetupError, match=r"model\.frozen quantises Llama 4 only"):
        load_base(tmp_path, dtype="float32", frozen=Frozen())


def test_resolve_base_corrects_llama4s_first_configuration(
    tiny_llama4: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_llama4, tmp_path / "published")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_temperature_tuning": 4}))
    with pytest.raises(Exception, match="bool"):
        load_base(folder, dtype="float32")
    mended = resolve_base(Model(base=str(folder)), cache_dir=tmp_path / "cache")
    assert mended != folder
    assert resolve_base(Model(base=str(folder)), cache_dir=tmp_path / "cache") == mended
    with torch.no_grad():
        torch.testing.assert_close(
            load_base(mended, dtype="float32")(IDS).logits,
            load_base(tiny_llama4, dtype="float32")(IDS).logits,
        )
