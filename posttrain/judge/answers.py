"""A rubric judge as a verifier: its score of an answer, cut at a threshold."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from posttrain.engines import Engine
from posttrain.errors import HealthStop
from posttrain.judge.calibration import Calibration, Labelled, calibrate
from posttrain.judge.quoting import quoted
from posttrain.judge.rubric import ask_rubric
from posttrain.recipe.judges import RubricJudge
from posttrain.records import Message, Outcome, Prompt, Sample

MIN_AUC = 0.5
"""A judge whose interval reaches down to this says no more than a coin."""


class AnswerJudge:
    """Scores answers by a rubric; with a threshold it decides them."""

    def __init__(
        self,
        spec: RubricJudge,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_model_len: int,
        threshold: float | None = None,
    ) -> None:
        self._spec = spec
        self._engine = engine
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self.threshold = threshold

    def calibrate(self, labelled: Sequence[Labelled], *, seed: int = 0) -> Calibration:
        """Find the threshold, unless it is set; HealthStop where the scores tell nothing."""
        opinions = self._ask([(row.messages, row.answer) for row in labelled])
        found = calibrate(
            [score for score, _ in opinions], [row.good for row in labelled], seed=seed
        )
        if found.auc_low <= MIN_AUC:
            raise HealthStop(
                f"answer_judge: good answers score above bad ones with probability {found.auc:.2f} "
                f"(95 % interval {found.auc_low:.2f} to {found.auc_high:.2f}) on "
                f"{found.num_good} good and {found.num_bad} bad answers: that may be chance",
                hint="use a stronger judge or another rubric, or give more calibration answers",
            )
        if self.threshold is None:
            self.threshold = found.threshold
        return found

    def __call__(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Outcome]:
        """Outcomes in order; passed None where the judge has no opinion."""
        assert self.threshold is not None, "calibrate first, or set a threshold"
        opinions = self._ask([(prompt.messages, text) for prompt, text in pairs])
        return [_outcome(score, reason, self.threshold) for score, reason in opinions]

    def _ask(
        self, pairs: Sequence[tuple[Sequence[Message], str]]
    ) -> list[tuple[float | None, str]]:
        samples = [_quoted_sample(messages, text) for messages, text in pairs]
        opinions = [
            opinion
            for start in range(0, len(samples), self._spec.batch_size)
            for opinion in ask_rubric(
                samples[start : start + self._spec.batch_size],
                self._spec,
                self._engine,
                self._tokenizer,
                max_model_len=self._max_model_len,
            )
        ]
        return [(opinion.score, opinion.reason) for opinion in opinions]


def _quoted_sample(messages: Sequence[Message], text: str) -> Sample:
    asked = [Message(role=turn["role"], content=quoted(turn["content"])) for turn in messages]
    return Sample.make(
        messages=[*asked, Message(role="assistant", content=quoted(text))], capability="judged"
    )


def _outcome(score: float | None, reason: str, threshold: float) -> Outcome:
    if score is None:
        return Outcome(passed=None, score=0.0, why=f"the judge has no opinion: {reason}")
    passed = score >= threshold
    why = f"score {score:.2f}, passes from {threshold:.2f}: {reason}"
    return Outcome(passed=passed, score=score, why=why)
