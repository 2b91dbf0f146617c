"""Nested values with arrays on disk: exact, whole, deterministic, no pickle."""

import numpy as np
import pytest

from posttrain.tables import read_arrays, write_arrays


def test_read_arrays_returns_what_write_arrays_wrote(tmp_path):
    arrays = {
        "counts": np.arange(6, dtype=np.int32).reshape(2, 3),
        "rates": np.array([0.1, np.nan, -np.inf]),
        "ids": np.array([b"ab", b"c"]),
        "empty": np.zeros((0, 4), dtype=np.float32),
    }
    value = {"kind": "x", "deep": [{"arrays": arrays}, 2**70, None, 0.1]}
    write_arrays(tmp_path / "state.npz", value)
    back = read_arrays(tmp_path / "state.npz")
    assert {**back, "deep": back["deep"][1:]} == {"kind": "x", "deep": [2**70, None, 0.1]}
    for name, array in arrays.items():
        found = back["deep"][0]["arrays"][name]
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        found[...] = array  # may be written to


def test_equal_values_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_arrays(tmp_path / name, {"x": np.arange(3), "y": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_object_arrays_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="objects"):
        write_arrays(tmp_path / "a", {"x": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match="__array__"):
        write_arrays(tmp_path / "a", {"__array__": 0})
    assert not (tmp_path / "a").exists()
    write_arrays(tmp_path / "a", {"x": np.arange(100)})
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole[:-40])
    with pytest.raises(ValueError, match="is damaged"):
        read_arrays(tmp_path / "a")
