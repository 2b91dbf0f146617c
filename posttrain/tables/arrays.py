"""Nested values with numpy arrays in one file: a zip of JSON and .npy members, no pickle."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from posttrain.tables.files import exact_json, write_bytes

_TREE = "state.json"
_MARK = "__array__"
# Equal values give equal bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


def write_arrays(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON values and numpy arrays, nested in any way, to `path` atomically.

    Raises ValueError for any other value, arrays of objects included.
    """
    arrays: list[npt.NDArray[Any]] = []
    tree = exact_json(_without_arrays(value, arrays))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(_TREE, _DATE), tree)
        for i, array in enumerate(arrays):
            with archive.open(zipfile.ZipInfo(f"{i}.npy", _DATE), "w", force_zip64=True) as member:
                np.save(member, array, allow_pickle=False)
    write_bytes(path, file.getbuffer())


def read_arrays(path: Path) -> dict[str, Any]:
    """Read what `write_arrays` wrote; raise ValueError if the file is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            tree = json.loads(archive.read(_TREE))
            num_arrays = len(archive.namelist()) - 1
            arrays = [_read_array(archive.read(f"{i}.npy")) for i in range(num_arrays)]
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or not a file of arrays: {error}") from error
    return _with_arrays(tree, arrays)


def _read_array(data: bytes) -> npt.NDArray[Any]:
    return cast("npt.NDArray[Any]", np.load(io.BytesIO(data), allow_pickle=False))


def _without_arrays(value: Any, arrays: list[npt.NDArray[Any]]) -> Any:
    if isinstance(value, np.ndarray):
        array = cast("npt.NDArray[Any]", value)
        if array.dtype.hasobject:
            raise ValueError("an array of objects cannot be written, only numbers and text")
        arrays.append(np.ascontiguousarray(array))
        return {_MARK: len(arrays) - 1}
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        if any(key == _MARK for key, _ in items):
            raise ValueError(f"{_MARK} is reserved and cannot be a key")
        return {key: _without_arrays(item, arrays) for key, item in items}
    if isinstance(value, list | tuple):
        return [_without_arrays(item, arrays) for item in cast("Sequence[Any]", value)]
    return value


def _with_arrays(tree: Any, arrays: Sequence[npt.NDArray[Any]]) -> Any:
    if isinstance(tree, dict):
        branch = cast("dict[str, Any]", tree)
        if _MARK in branch:
            return arrays[int(branch[_MARK])]
        return {key: _with_arrays(item, arrays) for key, item in branch.items()}
    if isinstance(tree, list):
        return [_with_arrays(item, arrays) for item in cast("list[Any]", tree)]
    return tree
