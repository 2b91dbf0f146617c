"""Exported adapters, read by those who do not know posttrain."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Llama4ForCausalLM

from posttrain.errors import SetupError
from posttrain.models import PolicyPath, load_policy, sequence_logprobs
from posttrain.models.export import export_adapter, to_half_split
from posttrain.models.moe_lora import LoraExperts
from posttrain.models.tiny import write_tiny_llama4
from posttrain.recipe.models import Lora, LoraTarget, Model

IDS = torch.tensor([[1, 5, 9, 17, 40, 41, 42, 7], [3, 3, 8, 100, 2, 60, 61, 62]])
PROMPTS, CONTINUATIONS = [[1, 20, 30, 40], [1, 50, 60]], [[5, 6, 7, 8], [9, 10, 11, 12]]
EVERYTHING: list[LoraTarget] = ["attention", "mlp", "shared_expert", "experts"]


def adapted(base: Path, targets: list[LoraTarget]) -> PeftModel:
    """The tiny model with a strong adapter."""
    spec = Model(base=str(base), dtype="float32", lora=Lora(rank=8, alpha=16, targets=targets))
    model = load_policy(PolicyPath(base=base), spec, trainable=True)
    assert isinstance(model, PeftModel)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def trained(tiny_llama4: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PeftModel, Path]:
    model = adapted(tiny_llama4, EVERYTHING)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(str(folder))
    return model, folder


def test_an_adapter_exported_for_peft_gives_the_same_logits_there(
    trained: tuple[PeftModel, Path], tiny_llama4: Path, tmp_path: Path
) -> None:
    model, adapter = trained
    out = export_adapter(adapter, tmp_path / "out", base=tiny_llama4, reader="peft")
    stock = Llama4ForCausalLM.from_pretrained(tiny_llama4, dtype=torch.float32)
    read = PeftModel.from_pretrained(stock, out).eval()
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        torch.testing.assert_close(read(input_ids=IDS).logits, expected, atol=1e-4, rtol=1e-4)
        with read.disable_adapter():
            assert (read(input_ids=IDS).logits - expected).abs().max() > 0.1


def test_an_adapter_exported_for_vllm_has_keys_of_linear_layers(
    trained: tuple[PeftModel, Path], tiny_llama4: Path, tmp_path: Path
) -> None:
    """Put back together expert by expert they are the change that PEFT's layer reports."""
    model, adapter = trained
    out = export_adapter(adapter, tmp_path / "out", base=tiny_llama4, reader="vllm")
    tensors = load_file(out / "adapter_model.safetensors")
    settings = json.loads((out / "adapter_config.json").read_text())
    assert set(settings["target_modules"]) == {
        f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")
    }
    assert all(tensor.dim() == 2 for tensor in tensors.values())
    for name, layer in model.get_base_model().named_modules():
        if not isinstance(layer, LoraExperts):
            continue
        gate_up = layer.delta_weight("default", "gate_up_proj")
        down = layer.delta_weight("default", "down_proj")
        for expert in range(4):

            def delta(projection: str, prefix: str = f"base_model.model.{name}.{expert}") -> Tensor:
                A, B = (tensors[f"{prefix}.{projection}.lora_{s}.weight"] for s in "AB")
                return 2.0 * (B @ A).T

            apart = torch.cat([delta("gate_proj"), delta("up_proj")], dim=1)
            torch.testing.assert_close(apart, gate_up[expert])
            torch.testing.assert_close(delta("down_proj"), down[expert])


def test_an_adapter_of_a_multimodal_base_has_vllms_prefix(
    trained: tuple[PeftModel, Path], tiny_llama4: Path, tmp_path: Path
) -> None:
    from transformers import Llama4Config, Llama4TextConfig

    text = Llama4TextConfig.from_pretrained(tiny_llama4)
    Llama4Config(text_config=text.to_dict()).save_pretrained(tmp_path / "base")
    out = export_adapter(trained[1], tmp_path / "out", base=tmp_path / "base", reader="vllm")
    keys = load_file(out / "adapter_model.safetensors").keys()
    assert all(key.startswith("base_model.model.language_model.model.layers.") for key in keys)


def test_to_half_split_reorders_interleaved_rotary_pairs() -> None:
    """One head of width 6: pairs (0, 1), (2, 3), (4, 5) become (0, 3), (1, 4), (2, 5)."""
    rows = torch.arange(12.0)[:, None].expand(12, 2)
    assert to_half_split(rows, num_heads=2)[:, 0].tolist() == [
        0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11,
    ]  # fmt: skip


def test_export_refuses_an_adapter_of_another_base(
    trained: tuple[PeftModel, Path], tmp_path: Path, tiny_llama4: Path
) -> None:
    config = json.loads((tiny_llama4 / "config.json").read_text())
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "num_local_experts": 8}))
    with pytest.raises(SetupError, match="does not fit the base"):
        export_adapter(trained[1], tmp_path / "out", base=tmp_path / "base", reader="vllm")
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "adapter_config.json").write_text((trained[1] / "adapter_config.json").read_text())
    save_file({"something.weight": torch.ones(2, 2)}, odd / "adapter_model.safetensors")
    with pytest.raises(SetupError, match=r"something\.weight is not a LoRA weight"):
        export_adapter(odd, tmp_path / "out", base=tiny_llama4, reader="peft")


def vllm_scores(base: Path, out: Path, *adapters: Path) -> list[list[list[float]]]:
    """Log-probabilities of CONTINUATIONS in vLLM, per adapter."""
    pytest.importorskip("vllm")
    rows = [p + c for p, c in zip(PROMPTS, CONTINUATIONS, strict=True)]
    request = {
        "base": str(base),
        "max_lora_rank": 8,
        "rows": rows,
        "adapters": [str(adapter) for adapter in adapters],
    }
    script = Path(__file__).with_name("vllm_scores.py")
    done = subprocess.run(
        [sys.executable, str(script), str(out)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        [scores[len(prompt) - 1 :] for scores, prompt in zip(per_row, PROMPTS, strict=True)]
        for per_row in json.loads(out.read_text())
    ]


def mean_difference(a: list[list[float]], b: list[list[float]]) -> float:
    pairs = [(x, y) for xs, ys in zip(a, b, strict=True) for x, y in zip(xs, ys, strict=True)]
    return sum(abs(x - y) for x, y in pairs) / len(pairs)


@pytest.mark.slow
def test_vllm_serves_the_adapter_and_needs_the_permutation(tmp_path: Path) -> None:
    """On a Llama 4 without experts, which is what vLLM's CPU build can serve with LoRA."""
    base = write_tiny_llama4(tmp_path / "base", interleave_moe_layer_step=5)
    model = adapted(base, ["attention", "mlp"])
    model.save_pretrained(str(tmp_path / "adapter"))
    expected = sequence_logprobs(model, PROMPTS, CONTINUATIONS)
    with model.disable_adapter():
        effect = mean_difference(expected, sequence_logprobs(model, PROMPTS, CONTINUATIONS))
    assert effect > 0.1
    right = export_adapter(tmp_path / "adapter", tmp_path / "right", base=base, reader="vllm")
    exported, as_it_was = vllm_scores(base, tmp_path / "out.json", right, tmp_path / "adapter")
    assert mean_difference(exported, expected) < 1e-4
    assert mean_difference(as_it_was, expected) > 0.1 * effect


@pytest.mark.gpu
@pytest.mark.slow
def test_vllm_serves_routed_experts(tmp_path: Path) -> None:
    """vLLM serves LoRA on experts on CUDA alone."""
    base = write_tiny_llama4(tmp_path / "base")
    model = adapted(base, EVERYTHING)
    model.save_pretrained(str(tmp_path / "adapter"))
    expected = sequence_logprobs(model, PROMPTS, CONTINUATIONS)
    out = export_adapter(tmp_path / "adapter", tmp_path / "out", base=base, reader="vllm")
    (found,) = vllm_scores(base, tmp_path / "out.json", out)
    assert mean_difference(found, expected) < 1e-3
