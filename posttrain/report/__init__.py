"""The report of a run, and the model card of its policy."""

from posttrain.report.card import write_model_card
from posttrain.report.page import write_report

__all__ = ["write_model_card", "write_report"]
