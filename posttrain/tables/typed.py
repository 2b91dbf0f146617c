"""Tables of records: the dataclasses of `records.py` as columns, read back bit for bit."""

# pyarrow ships no types
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import dataclasses
import functools
import operator
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import (
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import pyarrow as pa

from posttrain.records import Outcome, Prompt, Rollout, RolloutGroup
from posttrain.tables.files import Row
from posttrain.tables.rows import infer_field, json_field, read_table, write_table

Record = TypeVar("Record")


def record_schema(record_type: type[Any]) -> pa.Schema:
    """Return the columns of a record type by its field types; open mappings become JSON text."""
    return pa.schema([_hint_field(name, hint) for name, hint in _hints(record_type).items()])


@functools.cache
def _hints(record_type: type[Any]) -> dict[str, Any]:
    assert dataclasses.is_dataclass(record_type), record_type
    hints = get_type_hints(record_type)
    return {field.name: hints[field.name] for field in dataclasses.fields(record_type)}


def _optional(hint: Any) -> tuple[Any, bool]:
    """Split a type hint into the hint without None and True if None was part of it."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = [arg for arg in get_args(hint) if arg is not type(None)]
        assert len(inner) == 1, hint
        return inner[0], True
    return hint, False


def _hint_field(name: str, hint: Any) -> pa.Field:
    kind = _arrow_type(_optional(hint)[0])
    return json_field(name) if kind is None else pa.field(name, kind)


def _arrow_type(hint: Any) -> pa.DataType | None:
    """Return the column type of a field type; None for JSON text."""
    plain = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    if hint in plain:
        return plain[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return pa.string()
    if origin in (list, tuple):
        return pa.list_(_arrow_type(args[0]))
    if origin is Mapping:
        return pa.map_(pa.string(), pa.float64()) if args[1] is float else None
    if is_typeddict(hint):
        return pa.struct(
            [pa.field(key, _arrow_type(kind)) for key, kind in get_type_hints(hint).items()]
        )
    return pa.struct(list(record_schema(hint)))


def _encode(value: Any, hint: Any) -> Any:
    """Convert a value to its column's form; raise ValueError if it is not of the declared type."""
    hint, optional = _optional(hint)
    if optional and value is None:
        return None
    origin, args = get_origin(hint), get_args(hint)
    if hint is float or hint is int:
        return _number(value, hint)
    if (hint in (str, bool) and isinstance(value, hint)) or (origin is Literal and value in args):
        return value
    if origin is list and args[0] in (int, float) and isinstance(value, list):
        return [_number(item, args[0]) for item in cast("list[Any]", value)]
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return [_encode(item, args[0]) for item in cast("Sequence[Any]", value)]
    if origin is Mapping and isinstance(value, Mapping):
        mapping = dict(cast("Mapping[str, Any]", value))
        return [(key, float(v)) for key, v in mapping.items()] if args[1] is float else mapping
    if (
        is_typeddict(hint)
        and isinstance(value, Mapping)
        and set(value) == set(get_type_hints(hint))
    ):
        return {key: _encode(value[key], kind) for key, kind in get_type_hints(hint).items()}
    if dataclasses.is_dataclass(hint) and isinstance(value, cast("type[Any]", hint)):
        return {name: _encode(getattr(value, name), kind) for name, kind in _hints(hint).items()}
    raise ValueError(f"{value!r:.80} is no {hint}")


def _number(value: Any, kind: type[int] | type[float]) -> int | float:
    """Convert Python's or numpy's number; raise ValueError or TypeError for anything else."""
    if type(value) is kind:
        return value
    if isinstance(value, bool | str):
        raise ValueError(f"{value!r:.80} is no {kind}")
    return operator.index(value) if kind is int else float(value)


def _decode(value: Any, hint: Any) -> Any:
    hint, optional = _optional(hint)
    if optional and value is None:
        return None
    if get_origin(hint) in (list, tuple) and get_args(hint)[0] not in (int, float):
        items = [_decode(item, get_args(hint)[0]) for item in value]
        return tuple(items) if get_origin(hint) is tuple else items
    if dataclasses.is_dataclass(hint):
        return cast("Any", hint)(
            **{name: _decode(value[name], kind) for name, kind in _hints(hint).items()}
        )
    return value


def write_records(path: Path, records: Sequence[Record], record_type: type[Record]) -> None:
    """Write records of one type to a Parquet file, which has all columns even without records."""
    rows: list[Row] = []
    for position, record in enumerate(records):
        try:
            rows.append(_encode(record, record_type))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: record {position}: {error}") from error
    write_table(path, rows, schema=record_schema(record_type))


def read_records(path: Path, record_type: type[Record]) -> list[Record]:
    """Read the records that `write_records` wrote, equal in every bit."""
    return [_decode(row, record_type) for row in read_table(path)]


# Rollout groups: one row per rollout


def write_groups(
    path: Path,
    groups: Sequence[RolloutGroup],
    prompts: Mapping[str, Prompt],
    *,
    columns: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write groups as one row per rollout, in order, with the capability of each prompt.

    `columns`, one mapping per group, adds the caller's columns, such as `used` and `reason`.
    Raises ValueError for a group without rollouts, or with a prompt that is not in `prompts`.
    """
    added = columns if columns is not None else [{}] * len(groups)
    rows: list[Row] = []
    for group, extra in zip(groups, added, strict=True):
        if group.prompt_id not in prompts:
            raise ValueError(
                f"{path}: prompt {group.prompt_id} of a group at step {group.step} is unknown"
            )
        if not group.rollouts:
            raise ValueError(
                f"{path}: the group of {group.prompt_id} at step {group.step} has no rollouts"
            )
        head = {
            "prompt_id": group.prompt_id,
            "step": group.step,
            "policy_version": group.policy_version,
            "system": group.system,
        }
        for index, rollout in enumerate(group.rollouts):
            row = _encode(rollout, Rollout)
            outcome = row.pop("outcome")
            capability = prompts[group.prompt_id].capability
            rows.append(
                {**head, "index": index, **row, **outcome, "capability": capability, **extra}
            )
    schema = _group_schema()
    for name in dict.fromkeys(name for extra in added for name in extra):
        if name in schema.names:
            raise ValueError(f"{path}: column {name!r} is the table's own")
        schema = schema.append(infer_field(name, [row.get(name) for row in rows]))
    write_table(path, rows, schema=schema)


def read_groups(path: Path) -> list[RolloutGroup]:
    """Read the groups that `write_groups` wrote, in order, without the caller's columns."""
    groups: list[tuple[Row, list[Rollout]]] = []
    for row in read_table(path):
        if row["index"] == 0:
            groups.append((row, []))
        if "touches" in row:  # the column's name in earlier versions
            row["reward_hack_flags"] = row["touches"]
        # Tables that are older than a field lack its column, so the field gets its default.
        outcome = Outcome(
            **{
                name: _decode(row[name], hint)
                for name, hint in _hints(Outcome).items()
                if name in row
            }
        )
        fields = {name: row[name] for name in _hints(Rollout) if name != "outcome"}
        groups[-1][1].append(Rollout(**fields, outcome=outcome))
    return [
        RolloutGroup(
            prompt_id=head["prompt_id"],
            step=head["step"],
            policy_version=head["policy_version"],
            rollouts=tuple(rollouts),
            # Tables that are older than system instructions lack this column.
            system=head.get("system"),
        )
        for head, rollouts in groups
    ]


def _group_schema() -> pa.Schema:
    head = [pa.field("prompt_id", pa.string())]
    head += [pa.field(name, pa.int64()) for name in ("step", "policy_version", "index")]
    head.append(pa.field("system", pa.string()))
    rollout = [field for field in record_schema(Rollout) if field.name != "outcome"]
    return pa.schema(
        [*head, *rollout, *record_schema(Outcome), pa.field("capability", pa.string())]
    )
