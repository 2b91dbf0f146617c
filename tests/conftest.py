"""Small builders that several test files share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.records import Outcome, Prompt, Rollout, RolloutGroup, Sample
from posttrain.rewards.sandbox.landlock import Landlock


def make_sample(
    question: str = "2+2", answer: str = "4", *, capability: str = "math", **fields: Any
) -> Sample:
    """A sample of one question and its answer, decided by `exact` unless told otherwise."""
    return Sample.make(
        messages=[
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ],
        capability=capability,
        **{"verifier": "exact", "reference": answer, **fields},
    )


def make_prompt(
    question: str = "2+2", reference: str = "4", *, capability: str = "math", **fields: Any
) -> Prompt:
    """A prompt of one question, decided by `exact` unless told otherwise."""
    return Prompt.make(
        messages=[{"role": "user", "content": question}],
        reference=reference,
        capability=capability,
        **{"verifier": "exact", **fields},
    )


def make_group(
    passed: Sequence[int | None],
    *,
    prompt_id: str = "p1",
    step: int = 0,
    texts: Sequence[str] | None = None,
) -> RolloutGroup:
    """A group with one rollout per entry of `passed`: 1 passed, 0 failed, None undecided."""
    texts = texts or [f"answer {i}" for i in range(len(passed))]
    return RolloutGroup(
        prompt_id=prompt_id,
        step=step,
        policy_version=step,
        rollouts=tuple(
            Rollout(
                completion_ids=[10 + i, 4],
                logprobs=[-0.5, -0.1],
                text=text,
                finish_reason="stop",
                outcome=Outcome(
                    passed=None if won is None else bool(won),
                    score=float(won or 0),
                    why={1: "equal", 0: "differs", None: "timed out"}[won],
                ),
            )
            for i, (won, text) in enumerate(zip(passed, texts, strict=True))
        ),
    )


@pytest.fixture(scope="session")
def tiny_llama4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama 4 checkpoint with tokenizer and chat template; do not write into it."""
    from posttrain.models.tiny import write_tiny_llama4

    return write_tiny_llama4(tmp_path_factory.mktemp("models") / "tiny-llama4")


@pytest.fixture(scope="module")
def landlock() -> Iterator[Landlock]:
    """The sandbox with all protections; on Linux only."""
    made = Landlock(most=4)
    yield made
    made.close()
