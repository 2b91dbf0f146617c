"""The recipe's data as records: samples, prompts, held-out suites; other rows are quarantined."""

# pyarrow ships no types
# pyright: reportUnknownVariableType=false

from posttrain.data.levelled import LEVELLED, LevelledFamily, levelled_families, new_prompts
from posttrain.data.load import BadRows, DataBundle, assert_disjoint, load_data
from posttrain.data.quarantine import write_quarantine
from posttrain.data.reading import count_rows
from posttrain.data.records import prompt_of, question_hashes

__all__ = [
    "LEVELLED",
    "BadRows",
    "DataBundle",
    "LevelledFamily",
    "assert_disjoint",
    "count_rows",
    "levelled_families",
    "load_data",
    "new_prompts",
    "prompt_of",
    "question_hashes",
    "write_quarantine",
]
