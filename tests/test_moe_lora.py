"""LoRA on routed experts and router, against W + BA put into transformers' own model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from torch.func import functional_call
from transformers import Llama4ForCausalLM, Llama4TextConfig

from posttrain.errors import RecipeError, SetupError
from posttrain.models import PolicyPath, live_tensors, load_policy, merge, merged_tensors
from posttrain.models.experts import use_grouped_experts
from posttrain.models.loading import load_base
from posttrain.models.lora import adapted_layers, load_adapter, lora_config
from posttrain.models.moe_lora import PROJECTIONS, LoraExperts
from posttrain.recipe.models import Lora, LoraTarget, Model

IDS = torch.tensor([[1, 5, 9, 17, 40, 41, 42, 7], [3, 3, 8, 100, 2, 60, 61, 62]])
EVERYTHING: list[LoraTarget] = ["attention", "mlp", "shared_expert", "experts", "router"]


def randomised(model: PeftModel, seed: int = 0) -> PeftModel:
    """Adapters that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def adapted(base: Path, **changes: Any) -> PeftModel:
    spec = Model(
        base=str(base),
        dtype="float32",
        lora=Lora(**{"rank": 4, "alpha": 16, "targets": EVERYTHING, **changes}),
    )
    model = load_policy(PolicyPath(base=base), spec, trainable=True)
    assert isinstance(model, PeftModel)
    return randomised(model)


def lora_experts(model: PeftModel) -> dict[str, LoraExperts]:
    return {n: m for n, m in model.get_base_model().named_modules() if isinstance(m, LoraExperts)}


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def model(tiny_llama4: Path) -> PeftModel:
    return adapted(tiny_llama4)


@pytest.mark.parametrize("rank", [1, 3, 16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_experts_have_the_loss_and_gradients_of_w_plus_ba(
    tiny_llama4: Path, rank: int, checkpointing: bool
) -> None:
    """The oracle: transformers' dense experts with the sum as weights, in fp64 autograd."""
    ours = adapted(tiny_llama4, rank=rank).train()
    if checkpointing:
        ours.gradient_checkpointing_enable({"use_reentrant": False})
        ours.enable_input_require_grads()
    ours(input_ids=IDS, labels=IDS).loss.backward()

    oracle = Llama4ForCausalLM.from_pretrained(tiny_llama4, dtype=torch.float64)
    factors = {
        name: parameter.detach().double().requires_grad_()
        for name, parameter in ours.named_parameters()
        if parameter.requires_grad
    }
    weights: dict[str, Tensor] = {}
    for name in factors:
        if ".lora_A." not in name:
            continue
        A, B = factors[name], factors[name.replace(".lora_A.", ".lora_B.")]
        module, weight = name.removeprefix("base_model.model.").split(".lora_A.default.")
        delta = A @ B if A.dim() == 3 else B @ A
        weights[f"{module}.{weight}"] = (
            oracle.get_parameter(f"{module}.{weight}") + 16 / rank * delta
        )
    out = functional_call(oracle, weights, (), {"input_ids": IDS, "labels": IDS})
    out.loss.backward()

    torch.testing.assert_close(ours(input_ids=IDS, labels=IDS).loss, out.loss, rtol=1e-5, atol=0)
    found = {n: p.grad for n, p in ours.named_parameters() if p.requires_grad}
    assert {".".join(n.split(".")[-3:]) for n in found if "experts.lora" in n}
    for name, factor in factors.items():
        gradient = found[name]
        assert gradient is not None, name
        assert factor.grad is not None, name
        error = (gradient.double() - factor.grad).norm() / factor.grad.norm()
        assert error < 2e-5, (name, float(error))


def test_only_the_adapter_takes_gradients(model: PeftModel) -> None:
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


def test_a_new_adapter_is_the_identity(tiny_llama4: Path) -> None:
    spec = Model(base=str(tiny_llama4), dtype="float32", lora=Lora(rank=4, targets=EVERYTHING))
    fresh = load_policy(PolicyPath(base=tiny_llama4), spec, trainable=True)
    torch.testing.assert_close(logits(fresh), logits(load_base(tiny_llama4, dtype="float32")))


def test_disabled_adapters_give_the_base_output(model: PeftModel, tiny_llama4: Path) -> None:
    base = logits(load_base(tiny_llama4, dtype="float32"))
    assert (logits(model) - base).abs().max() > 1e-2
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), base)


def test_merge_and_unmerge_keep_the_logits(tiny_llama4: Path) -> None:
    model = adapted(tiny_llama4).eval()
    before = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), before, atol=1e-4, rtol=1e-4)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), before, atol=1e-4, rtol=1e-4)
    merged = model.merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits(merged), before, atol=1e-4, rtol=1e-4)


def test_merge_refuses_weights_that_are_not_finite(tiny_llama4: Path) -> None:
    model = adapted(tiny_llama4)
    layer = next(iter(lora_experts(model).values()))
    with torch.no_grad():
        layer.factors("default", "down_proj")[1].fill_(float("inf"))
    with pytest.raises(ValueError, match="not finite"):
        layer.merge(safe_merge=True)


def test_an_adapter_saved_and_loaded_gives_the_same_logits(
    model: PeftModel, tiny_llama4: Path, tmp_path: Path
) -> None:
    model.save_pretrained(str(tmp_path))
    again = load_adapter(load_base(tiny_llama4, dtype="float32"), tmp_path, trainable=True)
    assert torch.equal(logits(again), logits(model))
    mine = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in again.named_parameters() if p.requires_grad} == mine
    frozen = load_adapter(load_base(tiny_llama4, dtype="float32"), tmp_path, trainable=False)
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("changes", [{"num_local_experts": 8}, {"hidden_layers": 2}])
def test_an_adapter_of_another_base_is_refused(
    model: PeftModel, tiny_llama4: Path, tmp_path: Path, changes: dict[str, int]
) -> None:
    model.save_pretrained(str(tmp_path))
    config = Llama4TextConfig.from_pretrained(tiny_llama4)
    config.num_local_experts = changes.get("num_local_experts", 4)
    config.num_hidden_layers = changes.get("hidden_layers", 4)
    other = Llama4ForCausalLM(config)
    use_grouped_experts(other)
    with pytest.raises(SetupError, match="does not fit this base") as caught:
        load_adapter(other, tmp_path, trainable=False)
    assert str(tiny_llama4) in str(caught.value.hint)


def test_active_adapters_add_up_and_can_be_switched(tiny_llama4: Path) -> None:
    model = adapted(tiny_llama4)
    first = logits(model)
    model.add_adapter("other", model.peft_config["default"])
    assert torch.equal(logits(model), first)
    model.set_adapter("other")
    randomised_other = {n: p for n, p in model.named_parameters() if "lora_B.other" in n}
    with torch.no_grad():
        for parameter in randomised_other.values():
            parameter.normal_(std=0.05)
    second = logits(model)
    assert (second - first).abs().max() > 1e-2
    model.base_model.set_adapter(["default", "other"])  # pyright: ignore[reportCallIssue] its __getattr__
    layer = next(iter(lora_experts(model).values()))
    torch.manual_seed(0)
    rows, ends = torch.randn(6, 64), torch.tensor([1, 3, 3, 6], dtype=torch.int32)
    with torch.no_grad():
        both = layer(rows, ends)
        for name in PROJECTIONS:
            weight = getattr(layer.experts, name)
            weight.add_(layer.delta_weight("default", name) + layer.delta_weight("other", name))
        torch.testing.assert_close(layer.experts(rows, ends), both, atol=1e-4, rtol=1e-4)
    model.delete_adapter("other")
    assert all("other" not in name for name, _ in model.named_parameters())


def test_trls_reference_copy_keeps_the_first_adapter(model: PeftModel, tiny_llama4: Path) -> None:
    policy = adapted(tiny_llama4)
    before = logits(policy)
    policy.add_adapter("ref", policy.peft_config["default"])
    for name, parameter in policy.named_parameters():
        if ".default." in name:
            policy.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    policy.set_adapter("ref")
    assert torch.equal(logits(policy), before)
    policy.set_adapter("default")
    with torch.no_grad():
        for layer in lora_experts(policy).values():
            layer.factors("default", "gate_up_proj")[1].mul_(2)
    changed = logits(policy)
    policy.set_adapter("ref")
    assert torch.equal(logits(policy), before)
    assert (changed - before).abs().max() > 1e-3


def test_lora_dropout_acts_in_training_only(tiny_llama4: Path) -> None:
    model = adapted(tiny_llama4, dropout=0.5, targets=["experts"])
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(logits(model), logits(model))
    model.eval()
    assert torch.equal(logits(model), logits(model))


def test_rslora_scales_by_the_square_root_of_the_rank(tiny_llama4: Path) -> None:
    base = load_base(tiny_llama4, dtype="float32")
    config = lora_config(Lora(rank=4, alpha=8, targets=["experts"]), base)
    config.use_rslora = True
    from peft import get_peft_model

    layer = next(iter(lora_experts(get_peft_model(base, config)).values()))
    assert layer.scaling["default"] == 8 / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"use_dora": True}, "use_dora"), ({"init_lora_weights": "pissa"}, "pissa")],
)
def test_lora_experts_refuse_unsupported_variants(
    tiny_llama4: Path, changes: dict[str, Any], message: str
) -> None:
    layer = next(iter(lora_experts(adapted(tiny_llama4, targets=["experts"])).values()))
    with pytest.raises(ValueError, match=message):
        layer.update_layer("more", 4, 8, LoraConfig(**changes))
    with pytest.raises(ValueError, match="at least 1"):
        layer.update_layer("more", 0, 8, LoraConfig())


def test_factor_shapes_of_a_and_b(model: PeftModel) -> None:
    for layer in lora_experts(model).values():
        E, H, I2 = layer.experts.gate_up_proj.shape
        A, B = layer.factors("default", "gate_up_proj")
        assert (A.shape, B.shape) == ((E, H, 4), (E, 4, I2))
        A, B = layer.factors("default", "down_proj")
        assert (A.shape, B.shape) == ((E, I2 // 2, 4), (E, 4, H))


def test_live_tensors_equal_merged_tensors_of_the_saved_adapter(
    model: PeftModel, tiny_llama4: Path, tmp_path: Path
) -> None:
    model.save_pretrained(str(tmp_path / "adapter"))
    policy = PolicyPath(base=tiny_llama4, adapter=tmp_path / "adapter")
    live = dict(live_tensors(model))
    stored = dict(merged_tensors(policy, changed_only=True))
    assert live.keys() == stored.keys()
    assert any("experts.down_proj" in name for name in live)
    assert any("router" in name for name in live)
    for name, tensor in live.items():
        torch.testing.assert_close(stored[name], tensor, msg=name)
    merged = Llama4ForCausalLM.from_pretrained(
        merge(policy, tmp_path / "merged"), dtype=torch.float32
    )
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-4, rtol=1e-4)


def test_what_lora_hit_is_told(model: PeftModel, tiny_llama4: Path) -> None:
    hit = adapted_layers(model)
    assert {target: layers for target, (layers, _) in hit.items()} == {
        "attention": 16,
        "mlp": 6,
        "shared_expert": 6,
        "experts": 2,
        "router": 2,
    }
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(weights for _, weights in hit.values()) == trained
    # E (H + 2I) r + E (I + H) r, twice
    assert hit["experts"][1] == 2 * 4 * 4 * ((64 + 128) + (64 + 64))


def test_lora_config_refuses_a_target_that_matches_no_layer(
    tiny_llama4: Path, tmp_path: Path
) -> None:
    model = load_base(tiny_llama4, dtype="float32")
    assert json.loads((tiny_llama4 / "config.json").read_text())["num_local_experts"] == 4
    for layer in model.model.layers:
        if layer.is_moe_layer:
            layer.feed_forward = layer.feed_forward.shared_expert
    with pytest.raises(RecipeError, match=r"targets: router matches no layer"):
        lora_config(Lora(targets=["attention", "mlp", "experts", "router"]), model)
    with pytest.raises(RecipeError, match=r"targets: experts matches no layer"):
        lora_config(Lora(targets=["experts"]), model)
