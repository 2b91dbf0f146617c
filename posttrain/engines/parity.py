"""Parity: a check that an engine holds the right weights, by log-probabilities of a few tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer

from posttrain.engines.engine import Engine
from posttrain.errors import HealthStop
from posttrain.models import prompt_ids
from posttrain.models.scoring import sequence_logprobs
from posttrain.records import Message
from posttrain.tables import read_json, write_json

PARITY_FILE = "parity.json"
"""File beside a policy with log-probabilities that an engine which loads it must reproduce."""
NUM_SEQUENCES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedLogprobs:
    """Token sequences with the log-probabilities that the right weights give them."""

    prefixes_N: list[list[int]]
    continuations_N: list[list[int]]
    logprobs_N: list[list[float]]
    """Per continuation token, in nats, from the trainer's model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """Difference between an engine's log-probabilities and the expected ones, in nats per token."""

    mean: float
    max: float
    num_tokens: int
    policy_version: int


def expected_logprobs(
    model: nn.Module, prefixes_N: Sequence[list[int]], continuations_N: Sequence[list[int]]
) -> ExpectedLogprobs:
    """Score the first few sequences that have a continuation with the trainer's model."""
    pairs = [(p, c) for p, c in zip(prefixes_N, continuations_N, strict=True) if c][:NUM_SEQUENCES]
    prefixes, continuations = [p for p, _ in pairs], [c for _, c in pairs]
    training = model.training
    model.eval()
    logprobs = sequence_logprobs(model, prefixes, continuations)
    model.train(training)
    return ExpectedLogprobs(prefixes_N=prefixes, continuations_N=continuations, logprobs_N=logprobs)


def save_parity(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[tuple[list[Message], str]],
    folder: Path,
) -> None:
    """Score the first few answers with the trained policy, and write that into its folder.

    Every process must call it, as the model may be sharded over them.
    """
    few = answers[: 2 * NUM_SEQUENCES]
    expected = expected_logprobs(
        trainer.accelerator.unwrap_model(trainer.model),
        [prompt_ids(tokenizer, messages) for messages, _ in few],
        [tokenizer.encode(answer, add_special_tokens=False) for _, answer in few],
    )
    if trainer.is_world_process_zero():
        save_expected(expected, folder)


def check_parity(engine: Engine, expected: ExpectedLogprobs, *, tolerance: float) -> Parity:
    """Compare an engine with the expected log-probabilities.

    Raises HealthStop if the mean difference exceeds `tolerance`. The mean decides and not the
    maximum: in bf16, one flipped router moves a single token by most of a nat.
    """
    scores_N = engine.score(expected.prefixes_N, expected.continuations_N)
    differences = [
        abs(a - b)
        for ours, theirs in zip(scores_N, expected.logprobs_N, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    parity = Parity(
        mean=sum(differences) / len(differences),
        max=max(differences),
        num_tokens=len(differences),
        policy_version=engine.policy_version,
    )
    # NaN compares false with everything, so the test is for what must hold.
    if not parity.mean <= tolerance:
        raise HealthStop(
            f"the engine does not hold the policy's weights: after sync {parity.policy_version} "
            f"its log-probabilities differ from the trainer's by {parity.mean:.4f} nats per token "
            f"on average (at most {tolerance} is allowed)",
            hint="run `posttrain doctor`; set engine.kind: transformers to go on without vLLM",
        )
    return parity


def save_expected(expected: ExpectedLogprobs, folder: Path) -> None:
    """Write expected log-probabilities into the folder of the policy they belong to."""
    write_json(
        folder / PARITY_FILE,
        {
            "prefixes": expected.prefixes_N,
            "continuations": expected.continuations_N,
            "logprobs": expected.logprobs_N,
        },
    )


def load_expected(folder: Path) -> ExpectedLogprobs | None:
    """Read the expected log-probabilities in a policy's folder; None if it has none."""
    path = folder / PARITY_FILE
    if not path.exists():
        return None
    value = read_json(path)
    return ExpectedLogprobs(
        prefixes_N=value["prefixes"],
        continuations_N=value["continuations"],
        logprobs_N=value["logprobs"],
    )
