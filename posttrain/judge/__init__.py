"""A model's opinion of how hard a sample or how good an answer is, and whether to trust it."""

from posttrain.judge.answers import AnswerJudge
from posttrain.judge.ask import judge_identity, judge_samples
from posttrain.judge.calibration import read_labelled
from posttrain.judge.pilot import run_pilot
from posttrain.judge.summary import judge_summary

__all__ = [
    "AnswerJudge",
    "judge_identity",
    "judge_samples",
    "judge_summary",
    "read_labelled",
    "run_pilot",
]
