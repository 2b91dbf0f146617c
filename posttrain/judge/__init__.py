"""A model's opinion of how hard each sample is, and whether that opinion can be trusted."""

from posttrain.judge.ask import judge_identity, judge_samples
from posttrain.judge.pilot import run_pilot
from posttrain.judge.summary import judge_summary

__all__ = ["judge_identity", "judge_samples", "judge_summary", "run_pilot"]
