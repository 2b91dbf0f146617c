"""The nano Llama 4: a mixture of experts of about a million parameters, one token a character."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import Llama4ForCausalLM, Llama4TextConfig, PreTrainedTokenizerFast

from posttrain.bench.real_tasks import LETTERS, MARKS

BEGIN, PAD, END, USER, ASSISTANT, UNKNOWN = (
    "<|begin_of_text|>",
    "<|finetune_right_pad|>",
    "<|eot|>",
    "<|user|>",
    "<|assistant|>",
    "<|unknown|>",
)
SPECIAL_TOKENS = (BEGIN, PAD, END, USER, ASSISTANT, UNKNOWN)
"""Their ids are their places."""
CHARACTERS = LETTERS + "".join(MARKS)

# One token per role: the turns' heads would be most of a prompt of ten characters.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def write_nano_llama4(path: Path, *, seed: int) -> Path:
    """Write a random nano model with tokenizer and chat template to `path`; return `path`.

    Four layers, every second one with four routed experts and a shared one, the fourth without
    rotary positions. The same seed writes the same weights.
    """
    path.mkdir(parents=True, exist_ok=True)
    _tokenizer().save_pretrained(path)
    config = Llama4TextConfig(
        vocab_size=len(SPECIAL_TOKENS) + len(CHARACTERS),
        hidden_size=128,
        intermediate_size=128,
        intermediate_size_mlp=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=128,
        num_local_experts=4,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        attention_chunk_size=128,
        tie_word_embeddings=False,
        bos_token_id=SPECIAL_TOKENS.index(BEGIN),
        eos_token_id=SPECIAL_TOKENS.index(END),
        pad_token_id=SPECIAL_TOKENS.index(PAD),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Llama4ForCausalLM(config)
    model.save_pretrained(path)
    return path


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *CHARACTERS])}
    by_character = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    by_character.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    by_character.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=by_character,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )
