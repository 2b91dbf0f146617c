"""Whatever bytes a recipe holds, loading it ends in a recipe or in a RecipeError."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import RecipeError
from posttrain.recipe import load_recipe, shipped_dir

VALID = (shipped_dir("recipes") / "starter.yaml").read_bytes()
TOKENS = [
    b"[",
    b"{",
    b": ",
    b"- ",
    b"&a ",
    b"*a",
    b"!",
    b"|",
    b"'",
    b'"',
    b"\t",
    b"<<: ",
    b"~",
    b"? ",
]
TOKENS += [
    b"null",
    b"1e999",
    b"0x",
    b"9" * 30,
    b"\xff",
    "\u2028".encode(),
    b"%",
    b"@",
    b"\r",
    b"\0",
]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_mutation_ends_in_another_exception(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["byte", "cut", "token", "swap"])):
            case "byte":
                raw[at] = data.draw(st.integers(0, 255))
            case "cut":
                del raw[at : at + data.draw(st.integers(1, 40))]
            case "token":
                raw[at:at] = data.draw(st.sampled_from(TOKENS))
            case _:
                rows = raw.split(b"\n")
                first, second = (data.draw(st.integers(0, len(rows) - 1)) for _ in range(2))
                rows[first], rows[second] = rows[second], rows[first]
                raw = bytearray(b"\n".join(rows))
        raw = raw or bytearray(b"x")
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    file.write_bytes(raw)
    said = ""
    try:
        load_recipe(file)
    except RecipeError as error:
        said = error.message
    assert all(row.startswith(f"{file}:") for row in said.splitlines())
