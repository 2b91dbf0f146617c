"""Scores of samples and answers by a model, and the check whether to trust them."""

from posttrain.judge.answers import AnswerVerifier, read_labelled
from posttrain.judge.ask import judge_identity, judge_samples
from posttrain.judge.check import CheckResult, attempt_samples, check_judge, judge_summary

__all__ = [
    "AnswerVerifier",
    "CheckResult",
    "attempt_samples",
    "check_judge",
    "judge_identity",
    "judge_samples",
    "judge_summary",
    "read_labelled",
]
