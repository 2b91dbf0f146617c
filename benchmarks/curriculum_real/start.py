"""The policy that real learners start from: a nano Llama 4 after some SFT on the tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Llama4ForCausalLM,
    Llama4TextConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

import posttrain
from benchmarks.curriculum_real.tasks import CAPABILITIES, LETTERS, LEVELS, MARKS, draw_sample
from benchmarks.curriculum_rows import Floats
from posttrain import sft
from posttrain.models import PolicyPath, prompt_ids, sequence_logprobs
from posttrain.recipe.models import Model
from posttrain.recipe.trainer_blocks import SFTBlock
from posttrain.records import Prompt, content_hash
from posttrain.rl.likelihood import answer_ids
from posttrain.tables import write_json

NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 260, 64, 3e-3
LEVEL_DECAY = 0.65
"""Ratio of SFT samples between a level and the one below. Long strings are seen seldom, so that
pass rates fall smoothly from solved to dead."""
_DONE = "START.json"
_SEQUENCES_AT_ONCE = 512


def model_spec(base: Path) -> Model:
    """Return the model section of a recipe that trains every weight in float32."""
    return Model(base=str(base), dtype="float32", lora=None)


def starting_policy(folder: Path, *, seed: int, num_steps: int = NUM_STEPS) -> PolicyPath:
    """Return the policy that all arms of a seed start from, made once and kept in `folder`."""
    recipe = content_hash(
        seed, num_steps, BATCH_SIZE, LEARNING_RATE, LEVEL_DECAY, [*LEVELS], _code_hash()
    )
    home = folder / f"start-{seed}-{recipe}"
    policy = PolicyPath(base=home / "out" / "policy")
    if (home / _DONE).exists():
        return policy
    base = write_nano_llama4(home / "base", seed=seed)
    rng = np.random.default_rng([seed, 4])
    share = LEVEL_DECAY ** np.arange(len(LEVELS))
    samples = [
        draw_sample(
            CAPABILITIES[rng.integers(len(CAPABILITIES))],
            LEVELS[rng.choice(len(LEVELS), p=share / share.sum())],
            rng,
        )
        for _ in range(num_steps * BATCH_SIZE)
    ]
    summary = sft.train(
        samples,
        policy=PolicyPath(base=base),
        model=model_spec(base),
        trainer=SFTBlock(
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            warmup_steps=min(20, num_steps // 2),
            per_device_train_batch_size=BATCH_SIZE,
            num_train_epochs=1,
            gradient_checkpointing=False,
            save_strategy="no",
        ),
        seed=seed,
        work_dir=home / "work",
        out_dir=home / "out",
    )
    write_json(home / _DONE, summary)
    return policy


def _code_hash() -> str:
    """Hash the code that makes and teaches the model."""
    here = Path(__file__).parent
    files = (here / "start.py", here / "tasks.py", Path(posttrain.__file__).parent / "sft.py")
    return content_hash(*(path.read_text("utf-8") for path in files))


Exam = list[tuple[list[int], list[int]]]
"""Token ids of each prompt, and of its answer with the end of turn."""


def exam(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> Exam:
    """Tokenize prompts with their answers for `pass_rates`."""
    return [
        (
            prompt_ids(tokenizer, prompt.messages),
            answer_ids(tokenizer, prompt.messages, prompt.reference),
        )
        for prompt in prompts
    ]


def pass_rates(model: torch.nn.Module, exam_P: Exam) -> Floats:
    """Return each prompt's exact pass rate at temperature 1, (P,).

    This is the probability of the answer and its end of turn, as no other form is accepted.
    """
    order = sorted(range(len(exam_P)), key=lambda i: len(exam_P[i][0]))
    rates = np.zeros(len(exam_P))
    for start in range(0, len(order), _SEQUENCES_AT_ONCE):
        part = order[start : start + _SEQUENCES_AT_ONCE]
        logprobs = sequence_logprobs(
            model, [exam_P[i][0] for i in part], [exam_P[i][1] for i in part]
        )
        rates[part] = [math.exp(math.fsum(of_one)) for of_one in logprobs]
    return rates


BEGIN, PAD, END, USER, ASSISTANT, UNKNOWN = (
    "<|begin_of_text|>",
    "<|finetune_right_pad|>",
    "<|eot|>",
    "<|user|>",
    "<|assistant|>",
    "<|unknown|>",
)
SPECIAL_TOKENS = (BEGIN, PAD, END, USER, ASSISTANT, UNKNOWN)
"""Special tokens in the order of their ids."""
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
