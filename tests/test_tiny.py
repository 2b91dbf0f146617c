"""The tiny checkpoint is a Llama 4 in everything that tends to go wrong."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from posttrain.models.tiny import write_tiny_llama4


def test_tiny_llama4_has_llama4s_kinds_of_layers(tiny_llama4: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_llama4)
    assert config.model_type == "llama4_text"
    assert config.moe_layers == [1, 3]
    assert 0 in config.no_rope_layers
    assert "chunked_attention" in config.layer_types
    assert config.use_qk_norm


def test_tiny_llama4s_config_and_tokenizer_agree(tiny_llama4: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_llama4)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama4)
    assert len(tokenizer) == config.vocab_size
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert special == (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    text = "What is 17 + 25? \u00e9\u4e2d"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    turn = [{"role": "user", "content": "hi"}]
    asked = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    answered = tokenizer.apply_chat_template(
        [*turn, {"role": "assistant", "content": "yes"}], tokenize=False
    )
    assert answered == asked + "yes<|eot|>"


def test_tiny_llama4s_seed_fixes_the_weights(tiny_llama4: Path, tmp_path: Path) -> None:
    name = "model.safetensors"
    state = torch.get_rng_state()
    again = write_tiny_llama4(tmp_path / "again", seed=0)
    other = write_tiny_llama4(tmp_path / "other", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert (again / name).read_bytes() == (tiny_llama4 / name).read_bytes()
    assert (other / name).read_bytes() != (tiny_llama4 / name).read_bytes()


def test_tiny_llama4s_experts_change_the_log_probabilities(tiny_llama4: Path) -> None:
    """Experts in the wrong order move the log-probabilities by more than any tolerance in use."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama4)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        right = model(ids).logits.log_softmax(-1)
        for layer in (1, 3):
            down = model.model.layers[layer].feed_forward.experts.down_proj
            down.copy_(down.flip(0))
        wrong = model(ids).logits.log_softmax(-1)
    assert (right - wrong).abs().mean() > 0.05
