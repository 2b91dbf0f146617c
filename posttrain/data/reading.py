"""Files and `datasets` names as raw rows with their lines; unreadable ones carry a reason."""

# pyarrow and datasets ship no types
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import itertools
import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.data.quarantine import BadRow, Raw
from posttrain.errors import RecipeError, SetupError
from posttrain.recipe.files import DATA_SUFFIXES, is_data_file
from posttrain.recipe.schema import Recipe

MAX_LINE_BYTES = 10 * 1000 * 1000
_MAX_DEPTH = 64
_PEEK = 100
# A list of objects, or one that goes on in the next line; a row that is a list of values is a row.
_ARRAY = re.compile(rb"\s*\[\s*(\{|\n)")
_log = logging.getLogger("posttrain.data")


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Columns of a source (None if unknown) and its rows."""

    columns: list[str] | None
    rows: Callable[[], Iterator[Raw]]


def locate(path: str, find: Callable[[str], Path], where: str) -> Path:
    """Return the file or folder that a source names; RecipeError if there is none."""
    try:
        found = find(path)
    except FileNotFoundError as error:
        raise RecipeError(
            f"{where}: {path}: {error.strerror or error}",
            hint=f"fix the path of {where}; relative paths start at the recipe's folder",
        ) from error
    if not found.exists():
        raise RecipeError(f"{where}: no such file: {found}", hint=f"fix the path of {where}")
    return found


def open_table(path: str, split: str, find: Callable[[str], Path], where: str) -> Table:
    """Open a source; RecipeError if it is missing or of an unknown kind."""
    if not is_data_file(path):
        return _open_dataset(path, path, split, where)
    file = locate(path, find, where)
    if file.is_dir():
        return _open_dataset(str(file), path, split, where)
    if file.suffix == ".parquet":
        return _open_parquet(file, where)
    if file.suffix in DATA_SUFFIXES:
        return _open_jsonl(file, where)
    raise RecipeError(
        f"{where}: {file.name} is not a {', '.join(DATA_SUFFIXES)} file",
        hint="give a JSONL or Parquet file, a folder, or the name of a `datasets` data set",
    )


# ---- JSONL


def _open_jsonl(file: Path, where: str) -> Table:
    with file.open("rb") as stream:
        start = stream.read(4096)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise RecipeError(f"{where}: {file.name} is UTF-16", hint="save it as UTF-8")
    if _ARRAY.match(start.removeprefix(b"\xef\xbb\xbf")):
        raise RecipeError(
            f"{where}: {file.name} is one JSON array; JSONL has one object per line",
            hint=f"jq -c '.[]' {file.name} > {file.stem}-rows.jsonl, and name that under {where}",
        )
    names: dict[str, None] = {}
    for raw in itertools.islice(read_jsonl(file), _PEEK):
        names.update(dict.fromkeys(raw.values or {}))
    return Table(columns=list(names) or None, rows=lambda: read_jsonl(file))


def read_jsonl(file: Path) -> Iterator[Raw]:
    """Yield every line that is not blank, as an object or with the reason why it is none."""
    with file.open("rb") as stream:
        for line in itertools.count(1):
            data = stream.readline(MAX_LINE_BYTES + 1)
            if not data:
                return
            excerpt = data[:800].decode("utf-8", "replace").strip()
            if len(data) > MAX_LINE_BYTES and not data.endswith(b"\n"):
                while data and not data.endswith(b"\n"):
                    data = stream.readline(MAX_LINE_BYTES)
                detail = f"the line is longer than {MAX_LINE_BYTES // 10**6} MB"
                yield Raw(line=line, excerpt=excerpt, bad=BadRow("too_long", detail))
                continue
            data = data.removeprefix(b"\xef\xbb\xbf").strip() if line == 1 else data.strip()
            if not data:
                continue
            try:
                yield Raw(line=line, excerpt=excerpt, values=_parse(data))
            except BadRow as bad:
                yield Raw(line=line, excerpt=excerpt, bad=bad)


def _parse(data: bytes) -> dict[str, Any]:
    """Parse one line as an object; BadRow if it is none."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow("not_utf8", f"byte {error.start}: {error.reason}") from error
    try:
        value = json.loads(text, parse_constant=_not_finite, parse_float=_finite)
    except RecursionError as error:
        raise BadRow("too_deep", f"nested deeper than {_MAX_DEPTH}") from error
    except ValueError as error:
        raise BadRow("broken_json", str(error)) from error
    if not isinstance(value, dict):
        raise BadRow("not_object", f"a row is a JSON object, this is a {type(value).__name__}")
    if data.count(b"{") + data.count(b"[") > _MAX_DEPTH and _deeper_than(value, _MAX_DEPTH):
        raise BadRow("too_deep", f"nested deeper than {_MAX_DEPTH}")
    return value


def _not_finite(token: str) -> float:
    raise BadRow("not_finite", f"the number {token} is not JSON")


def _finite(token: str) -> float:
    value = float(token)
    return value if math.isfinite(value) else _not_finite(token)


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            item
            for parent in level
            if isinstance(parent, dict | list)
            for item in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)


# ---- Parquet and data sets


@contextmanager
def _readable(file: Path, where: str) -> Iterator[None]:
    """Raise RecipeError if a Parquet file is damaged."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise RecipeError(
            f"{where}: {file.name} is not a readable Parquet file: {error}",
            hint="make the file again, or give another",
        ) from error


def _open_parquet(file: Path, where: str) -> Table:
    with _readable(file, where):
        columns = list(pq.read_schema(file).names)
    return Table(columns=columns, rows=lambda: _read_parquet(file, where))


def _read_parquet(file: Path, where: str) -> Iterator[Raw]:
    line = 0
    with _readable(file, where), file.open("rb") as stream:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                line += 1
                yield _plain_raw(line, row)


def _plain_raw(line: int, row: dict[str, Any]) -> Raw:
    return Raw(line=line, excerpt=repr(row)[:800], values=row)


def _open_dataset(name: str, written: str, split: str, where: str) -> Table:
    """Open a data set by hub name (`name:config` if it has several), or a folder of data files."""
    try:
        import datasets
    except ImportError as error:
        raise SetupError(
            f"{where}: {written} needs the package datasets", hint="pip install datasets"
        ) from error
    repository, _, config = name.partition(":")
    try:
        builder = datasets.load_dataset_builder(repository, config or None)
        dataset = datasets.load_dataset(repository, config or None, split=split)
    except FileNotFoundError as error:
        raise RecipeError(
            f"{where}: {written} is neither a file nor a data set that can be found: {error}",
            hint="give a .jsonl or .parquet file, or a data set's full name, owner/name",
        ) from error
    except (ConnectionError, OSError) as error:
        raise SetupError(
            f"{where}: data set {written} cannot be fetched: {error}",
            hint="connect to the hub, or give a local file or folder",
        ) from error
    except ValueError as error:
        raise RecipeError(f"{where}: {written}: {error}", hint=f"change {where}") from error
    _log.info("%s: data set %s, revision %s", where, written, builder.hash)
    assert isinstance(dataset, datasets.Dataset), type(dataset)
    return Table(
        columns=list(dataset.column_names),
        rows=lambda: (_plain_raw(line, dict(row)) for line, row in enumerate(dataset, start=1)),
    )


def count_table(path: str, find: Callable[[str], Path], where: str) -> int | None:
    """Count a file's rows without parsing them; None for `datasets` names."""
    if not is_data_file(path):
        return None
    file = locate(path, find, where)
    if file.is_dir():
        return None
    if file.suffix == ".parquet":
        with _readable(file, where):
            return pq.read_metadata(file).num_rows
    with file.open("rb") as stream:
        return sum(1 for line in stream if line.strip())


def count_rows(recipe: Recipe, *, find: Callable[[str], Path]) -> dict[str, int | None]:
    """Return the most rows that sft and rl will read, cheaply; None if only loading would tell."""
    counts: dict[str, int | None] = {"sft": None, "rl": None}
    for section, spec in (("sft", recipe.sft), ("rl", recipe.rl)):
        total = 0
        for index, source in enumerate(spec.data if spec else ()):
            if source.path is None:
                made = source.generated.named if source.generated else source.reasoning_gym
                found = (source.size or 0) * len(made or ())
            else:
                rows = count_table(source.path, find, f"{section}.data[{index}]")
                known = [n for n in (rows, source.size) if n is not None]
                if not known:
                    break
                found = min(known)
            total += found
        else:
            counts[section] = total if spec else None
    return counts
