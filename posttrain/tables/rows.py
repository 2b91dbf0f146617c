"""Tables of plain rows in Parquet and JSONL; equal rows give equal bytes."""

# pyarrow ships no types
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.tables.files import DamagedFile, Row, exact_json, finite, write_bytes

# Marks a column of JSON text, the only exact form for values of mixed or open shape.
_JSON_MARK = {b"posttrain": b"json"}
_ROW_GROUP = 65_536


def json_field(name: str) -> pa.Field:
    """Return a schema field for any JSON values, stored as JSON text."""
    return pa.field(name, pa.string(), metadata=_JSON_MARK)


def _is_json(field: pa.Field) -> bool:
    return bool(field.metadata) and field.metadata.get(b"posttrain") == b"json"


def write_table(
    path: Path, rows: Sequence[Mapping[str, Any]], *, schema: pa.Schema | None = None
) -> None:
    """Write rows as Parquet or JSONL, by the suffix of `path`, atomically.

    Without a schema, Parquet columns get their type from their values; mixed or nested values are
    stored as JSON text. A key that a row lacks reads back as None from Parquet. In JSONL, numbers
    that are not finite become null. Raises ValueError with the column's name for what cannot be
    stored exactly (a lone surrogate in a text column, say), SetupError for a full disk.
    """
    if Path(path).suffix == ".jsonl":
        write_bytes(path, "".join(exact_json(finite(row)) + "\n" for row in rows).encode())
        return
    if Path(path).suffix != ".parquet":
        raise ValueError(f"{path}: the name of a table must end in .parquet or .jsonl")
    wanted: pa.Schema = _infer_schema(rows) if schema is None else schema
    if extra := {name for row in rows for name in row} - set(wanted.names):
        raise ValueError(f"{path}: columns {sorted(extra)} are not among {wanted.names}")
    columns: list[pa.Array] = []
    for field in wanted:
        values = [row.get(field.name) for row in rows]
        try:
            if _is_json(field):
                values = [None if value is None else exact_json(value) for value in values]
            columns.append(pa.array(values, type=field.type))
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{path}: column {field.name!r} cannot be stored: {error}") from error
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_arrays(columns, schema=wanted),
        sink,
        compression="zstd",
        compression_level=3,
        version="2.6",
        row_group_size=_ROW_GROUP,
        write_page_checksum=True,
    )
    write_bytes(path, memoryview(sink.getvalue()))


def read_table(path: Path, *, columns: Sequence[str] | None = None) -> list[Row]:
    """Read the rows that `write_table` wrote.

    Of a Parquet file, `columns` selects those of these columns that it has.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        return _read_jsonl(path)
    with path.open("rb") as file:
        try:
            # pq.read_table would make a column out of a folder named like `seed=1`.
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            there = (
                None if columns is None else [c for c in columns if c in parquet.schema_arrow.names]
            )
            table = parquet.read(columns=there)
        except (pa.ArrowException, OSError) as error:
            raise DamagedFile(f"{path} is not a readable Parquet file: {error}") from error
    values_C: list[list[Any]] = []
    for field in table.schema:
        values = table.column(field.name).to_pylist(maps_as_pydicts="strict")
        values_C.append(
            [None if v is None else json.loads(v) for v in values] if _is_json(field) else values
        )
    if not values_C:
        return [{} for _ in range(table.num_rows)]
    return [dict(zip(table.schema.names, row, strict=True)) for row in zip(*values_C, strict=True)]


def _read_jsonl(path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            said = f"{error.msg}, column {error.colno}"
            raise DamagedFile(f"{path}, line {number}, is not valid JSON: {said}") from error
        if not isinstance(row, dict):
            raise DamagedFile(f"{path}, line {number}, is not a JSON object: {line:.40}")
        rows.append(cast("Row", row))
    return rows


def _infer_schema(rows: Sequence[Mapping[str, Any]]) -> pa.Schema:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.schema([infer_field(name, [row.get(name) for row in rows]) for name in names])


def infer_field(name: str, values: Sequence[Any]) -> pa.Field:
    """Return a schema field that can hold these values exactly."""
    if plain := _plain_type(values):
        return pa.field(name, plain)
    lists = [value for value in values if value is not None]
    if all(isinstance(value, list) for value in lists):
        items: list[Any] = [item for value in lists for item in cast("list[Any]", value)]
        if plain := _plain_type(items):
            return pa.field(name, pa.list_(plain))
    return json_field(name)


def _plain_type(values: Sequence[Any]) -> pa.DataType | None:
    present = [value for value in values if value is not None]
    if not present:
        return None
    if all(isinstance(value, bool) for value in present):
        return pa.bool_()
    if any(isinstance(value, bool) for value in present):
        return None
    if all(isinstance(value, int) for value in present):
        return pa.int64() if all(-(2**63) <= value < 2**63 for value in present) else None
    if all(
        isinstance(value, float) or (isinstance(value, int) and abs(value) <= 2**53)
        for value in present
    ):
        return pa.float64()
    return pa.string() if all(isinstance(value, str) for value in present) else None
