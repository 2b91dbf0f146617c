"""Proof that an engine holds the weights it should: its log-probabilities beside the trainer's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from posttrain.engines.base import Engine
from posttrain.errors import HealthStop
from posttrain.models.scoring import sequence_logprobs
from posttrain.tables import read_json, write_json

NUM_PROBES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Token sequences, and the log-probabilities the right weights give their continuations."""

    prefixes_N: list[list[int]]
    continuations_N: list[list[int]]
    logprobs_N: list[list[float]]
    """Per continuation token, in nats, from the trainer's model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """How far an engine is from a probe, in nats per token."""

    mean: float
    max: float
    num_tokens: int
    policy_version: int


def take_probe(
    model: nn.Module, prefixes_N: Sequence[list[int]], continuations_N: Sequence[list[int]]
) -> Probe:
    """Score the first few sequences with a continuation by the trainer's model, dropout off."""
    pairs = [(p, c) for p, c in zip(prefixes_N, continuations_N, strict=True) if c][:NUM_PROBES]
    prefixes, continuations = [p for p, _ in pairs], [c for _, c in pairs]
    training = model.training
    model.eval()
    logprobs = sequence_logprobs(model, prefixes, continuations)
    model.train(training)
    return Probe(prefixes_N=prefixes, continuations_N=continuations, logprobs_N=logprobs)


def check_parity(engine: Engine, probe: Probe, *, tolerance: float) -> Parity:
    """Compare an engine with a probe; raise HealthStop when the mean difference passes `tolerance`.

    The mean decides: in bf16 one flipped router moves a single token by most of a nat while the
    mean stays small.
    """
    scores_N = engine.score(probe.prefixes_N, probe.continuations_N)
    differences = [
        abs(a - b)
        for ours, theirs in zip(scores_N, probe.logprobs_N, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    parity = Parity(
        mean=sum(differences) / len(differences),
        max=max(differences),
        num_tokens=len(differences),
        policy_version=engine.policy_version,
    )
    # A NaN compares false with everything, so ask for what must hold.
    if not parity.mean <= tolerance:
        raise HealthStop(
            f"the engine does not hold the policy's weights: after sync {parity.policy_version} "
            f"its log-probabilities differ from the trainer's by {parity.mean:.4f} nats per token "
            f"on average (at most {tolerance} allowed)",
            hint="run `posttrain doctor`; set engine.kind: transformers to go on without vLLM",
        )
    return parity


def save_probe(probe: Probe, path: Path) -> None:
    """Write a probe beside the policy it belongs to."""
    write_json(
        path,
        {
            "prefixes": probe.prefixes_N,
            "continuations": probe.continuations_N,
            "logprobs": probe.logprobs_N,
        },
    )


def load_probe(path: Path) -> Probe:
    """Read a probe written by `save_probe`."""
    value = read_json(path)
    return Probe(
        prefixes_N=value["prefixes"],
        continuations_N=value["continuations"],
        logprobs_N=value["logprobs"],
    )
