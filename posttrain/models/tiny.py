"""A tiny random Llama 4 mixture-of-experts checkpoint for `doctor` and the tests, made offline."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Llama4ForCausalLM, Llama4TextConfig, PreTrainedTokenizerFast

SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|finetune_right_pad|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eot|>",
)
"""Special tokens in the order of their ids; the second is the pad token, the last ends a turn."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|header_start|>' + message['role'] + '<|header_end|>\n\n' }}"
    "{{ message['content'] + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|header_start|>assistant<|header_end|>\n\n' }}{% endif %}"
)

CORPUS = (
    "system user assistant",
    "What is the answer? The answer is one number.",
    "How many times does the letter appear in the word?",
    "State the final answer to the following problem: add, subtract, multiply.",
    "0 1 2 3 4 5 6 7 8 9 10 11 12 20 30 40 50 60 70 80 90 100",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ + - * / = ( ) . , ? !",
)
VOCAB_SIZE = 300


def write_tiny_llama4(path: Path, *, seed: int = 0, interleave_moe_layer_step: int = 2) -> Path:
    """Write a random Llama 4 text model with tokenizer and chat template to `path`; return `path`.

    It has all that is special about Llama 4: routed and shared experts in every second of its four
    layers, chunked attention (128 tokens), a layer without rotary positions, query-key norms. Heads
    are 32 wide, the minimum of vLLM's CPU attention. The same seed gives the same weights. An
    `interleave_moe_layer_step` above four gives no layer experts.
    """
    path.mkdir(parents=True, exist_ok=True)
    _train_tokenizer().save_pretrained(path)
    config = Llama4TextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=64,
        intermediate_size_mlp=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        num_local_experts=4,
        num_experts_per_tok=1,
        interleave_moe_layer_step=interleave_moe_layer_step,
        attention_chunk_size=128,
        tie_word_embeddings=False,
        # Five times the usual: at 0.02 a wrong expert would hardly show in the log-probabilities.
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=4,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Llama4ForCausalLM(config)
    model.save_pretrained(path)
    return path


def _train_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE: every text round-trips, and common words take few tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    assert bpe.get_vocab_size() == VOCAB_SIZE, "the corpus is too small for the vocabulary"
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=SPECIAL_TOKENS[0],
        eos_token=SPECIAL_TOKENS[4],
        pad_token=SPECIAL_TOKENS[1],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
