"""Parquet, JSONL and JSON files, written atomically and with deterministic bytes."""

# pyarrow ships no types
# pyright: reportUnknownVariableType=false

from posttrain.tables.files import (
    DamagedFile,
    MetricsLog,
    file_sha256,
    read_arrays,
    read_json,
    read_metrics,
    write_arrays,
    write_bytes,
    write_json,
)
from posttrain.tables.rows import read_table, write_table
from posttrain.tables.typed import (
    read_groups,
    read_records,
    write_groups,
    write_records,
)

__all__ = [
    "DamagedFile",
    "MetricsLog",
    "file_sha256",
    "read_arrays",
    "read_groups",
    "read_json",
    "read_metrics",
    "read_records",
    "read_table",
    "write_arrays",
    "write_bytes",
    "write_groups",
    "write_json",
    "write_records",
    "write_table",
]
