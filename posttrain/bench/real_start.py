"""Where real learners start: a nano Llama 4 that posttrain's own SFT has taught a part of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from posttrain import sft
from posttrain.bench.learner import Floats
from posttrain.bench.real_model import write_nano_llama4
from posttrain.bench.real_tasks import CAPABILITIES, LEVELS, draw_sample
from posttrain.models import PolicyPath, prompt_ids, sequence_logprobs
from posttrain.recipe.models import Model
from posttrain.records import Prompt, content_hash
from posttrain.rl.likelihood import answer_ids
from posttrain.tables import write_json

NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 260, 64, 3e-3
LEVEL_DECAY = 0.65
"""Share of SFT samples that the next level gets: long strings are seen seldom, so that pass rates
fall smoothly from solved to dead."""
_DONE = "START.json"
_SEQUENCES_AT_ONCE = 512


def model_spec(base: Path) -> Model:
    """Every weight trains, in float32."""
    return Model(base=str(base), dtype="float32", lora=None)


def starting_policy(folder: Path, *, seed: int, num_steps: int = NUM_STEPS) -> PolicyPath:
    """The policy that all arms of a seed start from, made once and kept in `folder`."""
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
        trainer={
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "cosine",
            "warmup_steps": min(20, num_steps // 2),
            "per_device_train_batch_size": BATCH_SIZE,
            "num_train_epochs": 1,
            "gradient_checkpointing": False,
            "save_strategy": "no",
        },
        seed=seed,
        work_dir=home / "work",
        out_dir=home / "out",
    )
    write_json(home / _DONE, summary)
    return policy


def _code_hash() -> str:
    """Of what makes and teaches the model."""
    here = Path(__file__).parent
    files = [here / f"real_{name}.py" for name in ("model", "start", "tasks")]
    return content_hash(*(path.read_text("utf-8") for path in (*files, here.parent / "sft.py")))


Exam = list[tuple[list[int], list[int]]]
"""Per prompt its tokens, and its answer's with the end of turn."""


def exam(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> Exam:
    """What `pass_rates` scores."""
    return [
        (
            prompt_ids(tokenizer, prompt.messages),
            answer_ids(tokenizer, prompt.messages, prompt.reference),
        )
        for prompt in prompts
    ]


def pass_rates(model: torch.nn.Module, exam_P: Exam) -> Floats:
    """(P,) each prompt's pass rate at temperature 1, exactly.

    It is the probability of the answer and its end of turn, the answer's only accepted form.
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
