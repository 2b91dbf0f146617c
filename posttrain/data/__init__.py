"""From the recipe's data to records: samples, prompts, held-out suites, and what was left out."""

# pyarrow ships no types
# pyright: reportUnknownVariableType=false

from posttrain.data.counting import count_rows
from posttrain.data.heldout import assert_disjoint
from posttrain.data.load import BadRows, DataBundle, load_data
from posttrain.data.quarantine import QUARANTINE_SCHEMA, write_quarantine
from posttrain.data.records import prompt_of

__all__ = [
    "QUARANTINE_SCHEMA",
    "BadRows",
    "DataBundle",
    "assert_disjoint",
    "count_rows",
    "load_data",
    "prompt_of",
    "write_quarantine",
]
