"""posttrain.tables: exact round trips, deterministic bytes, nothing torn."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain import tables
from posttrain.errors import SetupError
from posttrain.records import (
    Outcome,
    OutcomeKind,
    PreferencePair,
    Prompt,
    Rollout,
    RolloutGroup,
    Sample,
    Verdict,
)

many = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
text = st.text(alphabet=st.characters(codec="utf-8"), max_size=12)
floats = st.floats(allow_nan=True, allow_infinity=True, width=64)
tokens = st.lists(st.integers(0, 2**31), max_size=5)
any_text = st.text(max_size=8)  # lone surrogates too
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)
metas = st.dictionaries(any_text, json_values, max_size=3)
messages = st.lists(
    st.builds(lambda r, c: {"role": r, "content": c}, st.sampled_from(["user", "assistant"]), text),
    max_size=3,
)
outcomes = st.builds(
    Outcome,
    passed=st.sampled_from([True, False, None]),
    score=floats,
    why=text,
    parts=st.dictionaries(text, floats, max_size=3),
    seconds=floats,
    kind=st.none() | st.sampled_from(get_args(OutcomeKind)),
)
rollouts = st.builds(
    Rollout,
    completion_ids=tokens,
    logprobs=st.lists(floats, max_size=5),
    text=text,
    finish_reason=st.sampled_from(["stop", "length"]),
    outcome=outcomes,
)
groups = st.builds(
    RolloutGroup,
    prompt_id=st.sampled_from(["p1", "p2"]),
    step=st.integers(0, 3),
    policy_version=st.integers(0, 3),
    system=st.none() | text,
    rollouts=st.lists(rollouts, min_size=1, max_size=4).map(tuple),
)
maybe = st.none() | text
RECORDS: dict[type[Any], st.SearchStrategy[Any]] = {
    Sample: st.builds(Sample, sample_id=text, messages=messages, capability=text, verifier=maybe,
                      reference=maybe, meta=metas),
    Verdict: st.builds(Verdict, sample_id=text, score=st.none() | floats, reason=text, judge=text,
                       distribution=st.dictionaries(text, floats, max_size=3)),
    Prompt: st.builds(Prompt, prompt_id=text, messages=messages, reference=text, verifier=text,
                      capability=text, level=maybe, origin=text, meta=metas),
    PreferencePair: st.builds(PreferencePair, prompt_id=text, prompt=messages, chosen=text,
                              rejected=text, corner_case=text, origin=metas),
    RolloutGroup: groups,
    Outcome: outcomes,
}  # fmt: skip


def bits(value: Any) -> Any:
    """`value` with every float as its 8 bytes, so that NaN equals NaN and -0.0 differs from 0.0."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack("<d", value)
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return (type(value).__name__, [bits(item) for item in value])
    if hasattr(value, "__dataclass_fields__"):
        return (type(value).__name__, [bits(getattr(value, n)) for n in value.__dataclass_fields__])
    return (type(value).__name__, value)


def make_prompt(prompt_id: str, capability: str) -> Prompt:
    return Prompt(
        prompt_id=prompt_id, messages=[], reference="", verifier="exact", capability=capability
    )


def make_group(step: int, passes: list[bool | None]) -> RolloutGroup:
    made = tuple(
        Rollout(completion_ids=[i, 2], logprobs=[-0.1 * i, -0.0], text=f"{i}", finish_reason="stop",
                outcome=Outcome(passed=p, score=float(p is True), why="why", parts={"x": 0.5}))
        for i, p in enumerate(passes)
    )  # fmt: skip
    return RolloutGroup(prompt_id="p1", step=step, policy_version=step, rollouts=made)


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_records_round_trip_in_every_bit(kind: type[Any], tmp_path: Path) -> None:
    @many
    @given(st.lists(RECORDS[kind], max_size=3))
    def check(records: list[Any]) -> None:
        path = tmp_path / "records.parquet"
        tables.write_records(path, records, kind)
        assert bits(tables.read_records(path, kind)) == bits(records)

    check()


@many
@given(st.lists(groups, max_size=4))
def test_groups_keep_their_order_and_their_rollouts(
    tmp_path: Path, many_groups: list[RolloutGroup]
) -> None:
    path = tmp_path / "groups.parquet"
    prompts = {"p1": make_prompt("p1", "math"), "p2": make_prompt("p2", "logic")}
    tables.write_groups(path, many_groups, prompts)
    assert bits(tables.read_groups(path)) == bits(many_groups)
    rows = tables.read_table(path)
    assert len(rows) == sum(len(group.rollouts) for group in many_groups)
    assert {row["capability"] for row in rows} <= {"math", "logic"}


def test_two_groups_of_one_prompt_at_one_step_stay_two(tmp_path: Path) -> None:
    two = [make_group(3, [True]), make_group(3, [False, None])]
    tables.write_groups(tmp_path / "g.parquet", two, {"p1": make_prompt("p1", "math")})
    assert tables.read_groups(tmp_path / "g.parquet") == two


def test_groups_of_before_a_field_was_added_are_read(tmp_path: Path) -> None:
    groups = [make_group(3, [True, None])]
    path = tmp_path / "g.parquet"
    tables.write_groups(path, groups, {"p1": make_prompt("p1", "math")})
    table = pq.read_table(path)
    assert {"extracted", "kind"} <= set(table.column_names)
    pq.write_table(table.drop_columns(["extracted", "kind"]), path)
    assert tables.read_groups(path) == groups


def test_groups_of_before_touches_was_renamed_are_read(tmp_path: Path) -> None:
    (group,) = [make_group(3, [True])]
    outcome = dataclasses.replace(group.rollouts[0].outcome, reward_hack_flags=("exit",))
    rollout = dataclasses.replace(group.rollouts[0], outcome=outcome)
    groups = [dataclasses.replace(group, rollouts=(rollout,))]
    path = tmp_path / "g.parquet"
    tables.write_groups(path, groups, {"p1": make_prompt("p1", "math")})
    table = pq.read_table(path)
    old = ["touches" if name == "reward_hack_flags" else name for name in table.column_names]
    pq.write_table(table.rename_columns(old), path)
    assert tables.read_groups(path) == groups


def test_groups_take_columns_of_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "g.parquet"
    columns = [{"used": True, "reason": ""}, {"used": False, "reason": "solved"}]
    two = [make_group(1, [True, False]), make_group(1, [True])]
    tables.write_groups(path, two, {"p1": make_prompt("p1", "math")}, columns=columns)
    assert [row["used"] for row in tables.read_table(path)] == [True, True, False]
    assert tables.read_groups(path) == two
    with pytest.raises(ValueError, match="'step' is the table's own"):
        tables.write_groups(path, two[:1], {"p1": make_prompt("p1", "m")}, columns=[{"step": 1}])


def test_a_group_that_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="p1 of a group at step 1 is unknown"):
        tables.write_groups(tmp_path / "g.parquet", [make_group(1, [True])], {})
    with pytest.raises(ValueError, match="has no rollouts"):
        tables.write_groups(
            tmp_path / "g.parquet", [make_group(1, [])], {"p1": make_prompt("p1", "m")}
        )
    assert not list(tmp_path.iterdir())


@many
@given(st.lists(st.dictionaries(st.sampled_from("abc"), json_values, max_size=3), max_size=4))
def test_plain_rows_round_trip(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "rows.parquet"
    surrogates = any(
        isinstance(v, str) and any("\ud800" <= c <= "\udfff" for c in v)
        for r in rows
        for v in r.values()
    )
    names = {name for row in rows for name in row}
    if surrogates:
        with suppress(ValueError):
            tables.write_table(path, rows)
        return
    tables.write_table(path, rows)
    read = tables.read_table(path)
    assert read == [{name: row.get(name) for name in names} for row in rows] or not names
    tables.write_table(tmp_path / "rows.jsonl", rows)
    assert tables.read_table(tmp_path / "rows.jsonl") == rows


def test_a_lone_surrogate_in_a_text_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"column 'why' cannot be stored: .*surrogate"):
        tables.write_table(tmp_path / "t.parquet", [{"why": "ok"}, {"why": "\ud800"}])
    assert not list(tmp_path.iterdir())


def test_values_that_are_not_json_are_refused_not_changed(tmp_path: Path) -> None:
    for meta in ({"a": (1, 2)}, {1: "a"}, {"a": float("nan")}, {"a": {1, 2}}):
        sample = Sample(sample_id="s", messages=[], capability="c", meta=meta)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="column 'meta' cannot be stored"):
            tables.write_records(tmp_path / "s.parquet", [sample], Sample)


@pytest.mark.parametrize(
    "change",
    [{"sample_id": None}, {"messages": [{"role": "user"}]}, {"capability": 3}, {"verifier": 1.5},
     {"messages": [{"role": "user", "content": "a", "name": "b"}]}],
)  # fmt: skip
def test_a_record_of_the_wrong_shape_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    fields: dict[str, Any] = {"sample_id": "s", "messages": [], "capability": "c"}
    with pytest.raises(ValueError, match="record 1"):
        tables.write_records(
            tmp_path / "s.parquet", [Sample(**fields), Sample(**(fields | change))], Sample
        )


def test_empty_tables_keep_their_columns(tmp_path: Path) -> None:
    tables.write_records(tmp_path / "s.parquet", [], Sample)
    assert pq.read_schema(tmp_path / "s.parquet").names == [
        "sample_id", "messages", "capability", "verifier", "reference", "meta",
    ]  # fmt: skip
    assert tables.read_records(tmp_path / "s.parquet", Sample) == []
    tables.write_groups(tmp_path / "g.parquet", [], {})
    assert "completion_ids" in pq.read_schema(tmp_path / "g.parquet").names
    assert tables.read_groups(tmp_path / "g.parquet") == []


def test_equal_content_gives_equal_bytes_in_another_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from posttrain import tables; from posttrain.records import Sample\n"
        "s = [Sample.make(messages=[{'role': 'user', 'content': str(i % 7)}], capability='c',"
        " meta={'n': i, 'b': 0.1 * i}) for i in range(3000)]\n"
        "p = Path(sys.argv[1]); tables.write_records(p, s, Sample); print(tables.file_sha256(p))"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / f"{seed}.parquet")],
            env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(hashes) == 1
    assert len(hashes.pop().strip()) == 64


def test_the_table_is_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "seed=1" / "g.parquet"
    tables.write_groups(path, [make_group(1, [True, None])], {"p1": make_prompt("p1", "math")})
    rows = tables.read_table(path)
    assert "seed" not in rows[0]
    assert rows[0]["parts"] == {"x": 0.5}
    assert [row["passed"] for row in rows] == [True, None]
    duckdb = pytest.importorskip("duckdb")
    count = duckdb.sql(f"select count(*), sum(len(completion_ids)) from '{path}'").fetchall()
    assert count == [(2, 4)]


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    tables.write_table(path, [{"a": i, "b": f"{i}" * 20} for i in range(1000)])
    whole = path.read_bytes()
    for damaged in (
        whole[: len(whole) // 2],
        b"",
        whole[:200] + bytes([whole[200] ^ 255]) + whole[201:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"t\.parquet is not a readable Parquet file"):
            tables.read_table(path)
    with pytest.raises(FileNotFoundError):
        tables.read_table(tmp_path / "none.parquet")


def test_jsonl_tells_the_line_and_takes_a_bom(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2}\n')
    assert tables.read_table(path) == [{"a": 1}, {"a": 2}]
    for broken, said in (
        ("{", "line 3, is not valid JSON"),
        ("[1,2]", "line 3, is not a JSON obj"),
    ):
        path.write_text('{"a": 1}\n\n' + broken)
        with pytest.raises(tables.DamagedFile, match=rf"t\.jsonl, {said}"):
            tables.read_table(path)


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_says_how_to_go_on(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.json"
    tables.write_json(path, {"old": 1})

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "write":
        limit = (
            "import resource; from pathlib import Path; from posttrain import tables\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            f"tables.write_json(Path({str(path)!r}), list(range(9999)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", limit], capture_output=True, text=True, check=False
        )
        assert "SetupError: no space left to write" in done.stderr
        assert str(path) in done.stderr
    else:
        monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), full)
        with pytest.raises(SetupError, match=r"t\.json") as caught:
            tables.write_json(path, {"new": 2})
        assert "run the same command again" in caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]
    assert tables.read_json(path) == {"old": 1}


def test_json_files_are_stable_and_strict(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    tables.write_json(path, {"b": float("nan"), "a": [float("inf"), (1, 2.5)]})
    assert path.read_text() == json.dumps({"a": [None, [1, 2.5]], "b": None}, indent=2) + "\n"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        tables.read_json(path)


def test_metrics_survive_a_torn_line_and_rewind(tmp_path: Path) -> None:
    path = tmp_path / "work" / "metrics.jsonl"
    log = tables.MetricsLog(path)
    for step in range(4):
        log.append(step, {"rl/loss": 0.1 * step, "rl/bad": float("nan")})
    with path.open("ab") as file:
        file.write(b'{"step": 4, "rl/lo')
    again = tables.MetricsLog(path)
    again.append(4, {"rl/loss": 1})
    rows = tables.read_metrics(path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[3]["rl/loss"] == 0.1 * 3
    assert rows[3]["rl/bad"] is None
    again.rewind(1)
    assert [row["step"] for row in tables.read_metrics(path)] == [0, 1]
    again.append(2, {"rl/loss": 1})
    assert [row["step"] for row in tables.read_metrics(path)] == [0, 1, 2]
    assert tables.read_metrics(tmp_path / "none.jsonl") == []
