from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Llama4ForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe

from posttrain.errors import RecipeError, SetupError
from posttrain.models import (
    PolicyPath,
    count_parameters,
    live_tensors,
    load_policy,
    merge,
    merged_tensors,
    resolve_base,
    sequence_logprobs,
    upcycle,
)
from posttrain.models.checkpoint import checkpoint_dtypes
from posttrain.models.experts import use_grouped_experts
from posttrain.models.loading import load_base
from posttrain.models.lora import load_adapter, lora_config
from posttrain.models.policy import load_tokenizer
from posttrain.models.upcycle import gguf_parsed_once
from posttrain.recipe.models import Lora, Model

IDS = torch.tensor([[1, 5, 9, 17, 40, 41, 42, 7], [3, 3, 8, 100, 2, 60, 61, 62]])


def make_dense(path: Path, tiny: Path, **changes: object) -> Path:
    """A random dense Llama with biases in attention and its own tokenizer."""
    torch.manual_seed(3)
    config = LlamaConfig(
        **{
            "vocab_size": 300,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.3,
            "tie_word_embeddings": True,
            "rope_theta": 5000.0,
            **changes,
        }
    )
    model = LlamaForCausalLM(config)
    tokenizer = load_tokenizer(tiny)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def adapted(tiny_llama4: Path, tmp_path_factory: pytest.TempPathFactory) -> PolicyPath:
    """The tiny model with an adapter that is not the identity."""
    spec = Model(base=str(tiny_llama4), dtype="float32", lora=Lora(rank=4, alpha=16))
    model = load_policy(PolicyPath(base=tiny_llama4), spec, trainable=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(str(folder))
    return PolicyPath(base=tiny_llama4, adapter=folder)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("attention_bias", [False, True])
def test_upcycling_keeps_the_logits(
    tmp_path: Path, tiny_llama4: Path, every: int, attention_bias: bool
) -> None:
    source = make_dense(tmp_path / "dense", tiny_llama4, attention_bias=attention_bias)
    upcycle(str(source), tmp_path / "moe", experts=3, every=every)
    moe = Llama4ForCausalLM.from_pretrained(tmp_path / "moe", dtype=torch.float32)
    dense = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
    layers = [m for m in moe.modules() if isinstance(m, Llama4TextMoe)]
    assert len(layers) == 4 // every
    assert all(layer.num_experts == 3 for layer in layers)
    with torch.no_grad():
        expected, found = dense(IDS).logits, moe(IDS).logits
    assert expected.abs().max() > 1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_upcycled_experts_get_gradients(tmp_path: Path, tiny_llama4: Path) -> None:
    upcycle(str(make_dense(tmp_path / "dense", tiny_llama4)), tmp_path / "moe", experts=2)
    moe = load_base(tmp_path / "moe", dtype="float32")
    moe(IDS, labels=IDS).loss.backward()
    layer = next(m for m in moe.modules() if isinstance(m, Llama4TextMoe))
    assert layer.experts.down_proj.grad is not None
    assert layer.experts.down_proj.grad.abs().max() > 0


def test_upcycle_refuses_anything_but_a_dense_llama(tmp_path: Path, tiny_llama4: Path) -> None:
    with pytest.raises(RecipeError, match="dense Llama"):
        upcycle(str(tiny_llama4), tmp_path / "x", experts=2)
    with pytest.raises(SetupError, match="cannot load"):
        upcycle(str(tmp_path / "nothing"), tmp_path / "x", experts=2)
    source = make_dense(tmp_path / "dense", tiny_llama4)
    with pytest.raises(RecipeError, match="every: 5"):
        upcycle(str(source), tmp_path / "x", experts=2, every=5)


def test_load_base_converts_every_moe_layer(tiny_llama4: Path) -> None:
    plain = Llama4ForCausalLM.from_pretrained(tiny_llama4, dtype=torch.float32)
    ours = load_base(tiny_llama4, dtype="float32")
    assert use_grouped_experts(plain) == 2
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, plain(IDS).logits)


def test_merge_gives_pefts_logits(adapted: PolicyPath, tmp_path: Path) -> None:
    assert adapted.adapter is not None
    base = load_base(adapted.base, dtype="float32")
    before = base(IDS).logits.detach()
    oracle = load_adapter(base, adapted.adapter, trainable=False).merge_and_unload()
    merged = load_base(merge(adapted, tmp_path / "merged"), dtype="float32")
    with torch.no_grad():
        expected, found = oracle(IDS).logits, merged(IDS).logits
    assert (expected - before).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (tmp_path / "merged" / "tokenizer.json").exists()


def test_merge_into_many_shards_writes_every_tensor(adapted: PolicyPath, tmp_path: Path) -> None:
    whole = dict(merged_tensors(adapted))
    folder = merge(adapted, tmp_path / "merged", shard_bytes=40_000)
    assert len(list(folder.glob("*.safetensors"))) > 3
    found = dict(merged_tensors(PolicyPath(base=folder)))
    assert whole.keys() == found.keys()
    assert all(whole[name].equal(found[name]) for name in whole)
    assert count_parameters(folder) == sum(t.numel() for t in whole.values())


def test_checkpoint_dtypes_of_a_merged_checkpoint(adapted: PolicyPath, tmp_path: Path) -> None:
    assert checkpoint_dtypes(merge(adapted, tmp_path / "as-it-was")) == {"F32"}
    assert checkpoint_dtypes(merge(adapted, tmp_path / "half", dtype="bfloat16")) == {"BF16"}


def test_live_tensors_equal_merged_tensors(adapted: PolicyPath) -> None:
    spec = Model(base=str(adapted.base), dtype="float32")
    live = dict(live_tensors(load_policy(adapted, spec, trainable=True)))
    stored = dict(merged_tensors(adapted, changed_only=True))
    assert live.keys() == stored.keys()
    for name, tensor in stored.items():
        torch.testing.assert_close(live[name], tensor)


def test_live_tensors_of_full_training_are_all_tensors(tiny_llama4: Path) -> None:
    spec = Model(base=str(tiny_llama4), dtype="float32", lora=None)
    model = load_policy(PolicyPath(base=tiny_llama4), spec, trainable=True)
    assert all(p.requires_grad for p in model.parameters())
    names = set(dict(live_tensors(model)))
    assert set(dict(merged_tensors(PolicyPath(base=tiny_llama4)))) <= names


def test_lora_config_adapts_the_recipes_targets(tiny_llama4: Path) -> None:
    model = load_base(tiny_llama4, dtype="float32")
    config = lora_config(Lora(targets=["attention", "shared_expert"]), model)
    assert isinstance(config.target_modules, set)
    assert len(config.target_modules) == 4 * 4 + 2 * 3
    assert not any(".experts." in name or ".router" in name for name in config.target_modules)


def test_lora_config_refuses_targets_without_layers(tmp_path: Path, tiny_llama4: Path) -> None:
    dense = load_base(make_dense(tmp_path / "dense", tiny_llama4), dtype="float32")
    with pytest.raises(RecipeError, match="router matches no layer"):
        lora_config(Lora(targets=["attention", "router"]), dense)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no config.json"),
        ({"config.json": "{"}, "not a model configuration"),
        ({"config.json": "{}"}, "not a model configuration"),
        ({"config.json": '{"model_type": "llama"}'}, "no \\*.safetensors"),
    ],
)
def test_resolve_base_refuses_a_folder_that_is_not_a_model(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SetupError, match=message):
        resolve_base(Model(base=str(tmp_path)), cache_dir=tmp_path / "cache")


def test_a_gguf_file_is_parsed_once_and_alike(tmp_path: Path) -> None:
    import gguf

    path = str(tmp_path / "tiny.gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(["a", "bc", "def"])
    writer.add_tensor("token_embd.weight", np.arange(6, dtype=np.float32).reshape(3, 2))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    plain, by_name = gguf.GGUFReader(path), gguf.get_tensor_name_map
    with gguf_parsed_once():
        reader = gguf.GGUFReader(path)
        assert gguf.GGUFReader(path) is reader
        llama = gguf.MODEL_ARCH.LLAMA
        assert gguf.get_tensor_name_map(llama, 2) is gguf.get_tensor_name_map(llama, 2)
    assert gguf.get_tensor_name_map is by_name
    assert type(gguf.GGUFReader(path)) is type(plain)
    assert reader.fields.keys() == plain.fields.keys()
    for name, field in plain.fields.items():
        assert [part.tolist() for part in reader.fields[name].parts] == [
            part.tolist() for part in field.parts
        ]
    assert (
        reader.tensors[0].data.tolist()
        == plain.tensors[0].data.tolist()
        == [[0, 1], [2, 3], [4, 5]]
    )


def test_resolve_base_upcycles_once(tmp_path: Path, tiny_llama4: Path) -> None:
    source = make_dense(tmp_path / "dense", tiny_llama4)
    spec = Model.model_validate(
        {"base": {"upcycle": {"from": str(source), "experts": 2}}, "dtype": "float32"}
    )
    first = resolve_base(spec, cache_dir=tmp_path / "cache")
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert resolve_base(spec, cache_dir=tmp_path / "cache") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    other = spec.model_copy(update={"dtype": "bfloat16"})
    assert resolve_base(other, cache_dir=tmp_path / "cache") != first


def test_sequence_logprobs_equal_a_forward_pass_of_each_sequence(tiny_llama4: Path) -> None:
    model = load_base(tiny_llama4, dtype="float32")
    prefixes, continuations = [[1, 5, 9], [3, 3, 8, 100, 2]], [[17, 40], [60, 61, 62, 7, 7, 7]]
    found = sequence_logprobs(model, prefixes, continuations)
    for prefix, continuation, scores in zip(prefixes, continuations, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prefix + continuation])).logits[0].log_softmax(-1)
        alone = [logits[len(prefix) - 1 + t, token].item() for t, token in enumerate(continuation)]
        assert scores == pytest.approx(alone, abs=1e-5)
