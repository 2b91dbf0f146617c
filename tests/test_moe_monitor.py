from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from posttrain.models import PolicyPath, load_policy
from posttrain.models.experts import moe_layers
from posttrain.models.loading import load_base
from posttrain.models.moe_monitor import MoeMonitor, gradient_norms
from posttrain.recipe.models import Lora, Model

IDS = torch.randint(5, 300, (2, 40), generator=torch.Generator().manual_seed(0))


def test_take_reports_the_load_that_the_routers_chose(tiny_llama4: Path) -> None:
    model = load_base(tiny_llama4, dtype="float32").train()
    health = MoeMonitor(model)
    model(IDS)
    model(IDS)
    found = health.take()
    with torch.no_grad():
        logits = model.model(IDS, output_router_logits=True).router_logits
    layers = [name.split(".")[2] for name in moe_layers(model)]
    assert len(layers) == len(logits) == 2
    for layer, logits_NE in zip(layers, logits, strict=True):
        counts = logits_NE.argmax(-1).bincount(minlength=4).double()
        share = counts / counts.sum()
        entropy = -(share[share > 0] * share[share > 0].log()).sum() / math.log(4)
        assert found[f"moe/layer_{layer}/load_max"] == pytest.approx(float(share.max()) * 4)
        assert found[f"moe/layer_{layer}/load_entropy"] == pytest.approx(float(entropy))
        assert found[f"moe/layer_{layer}/dead"] == float((counts == 0).double().mean())
        rms = float(logits_NE.square().mean().sqrt())
        assert found[f"moe/layer_{layer}/router_rms"] == pytest.approx(rms, rel=1e-5)
    assert found["moe/load_max"] == max(found[f"moe/layer_{layer}/load_max"] for layer in layers)
    assert found["moe/load_entropy"] == min(
        found[f"moe/layer_{layer}/load_entropy"] for layer in layers
    )


def test_take_resets_the_counts_and_evaluation_is_not_counted(tiny_llama4: Path) -> None:
    model = load_base(tiny_llama4, dtype="float32").train()
    health = MoeMonitor(model)
    model(IDS)
    assert health.take()
    model.eval()
    model(IDS)
    assert health.take() == {}
    health.close()
    assert all(moe.watch is None for moe in moe_layers(model).values())


def test_gradient_norms_by_kind_add_up_to_the_total_norm(tiny_llama4: Path) -> None:
    spec = Model(base=str(tiny_llama4), dtype="float32", lora=Lora(rank=2))
    model = load_policy(PolicyPath(base=tiny_llama4), spec, trainable=True)
    model(input_ids=IDS, labels=IDS).loss.backward()
    norms = gradient_norms(model)
    assert norms.keys() == {
        f"grad_norm/{kind}" for kind in ("attention", "mlp", "shared_expert", "experts")
    }
    total = torch.nn.utils.get_total_norm(
        [p.grad for p in model.parameters() if p.grad is not None]
    )
    assert math.sqrt(sum(n**2 for n in norms.values())) == pytest.approx(float(total), rel=1e-5)


def test_gradient_norms_of_full_training_have_every_kind(tiny_llama4: Path) -> None:
    model = load_base(tiny_llama4, dtype="float32").train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    kinds = {key.removeprefix("grad_norm/") for key in gradient_norms(model)}
    assert kinds == {
        "embeddings", "attention", "mlp", "shared_expert", "experts", "router", "norms", "lm_head",
    }  # fmt: skip
