"""Artefacts of stages: written and read back, averages, damage."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from posttrain.artefacts import (
    CapabilityResult,
    EvaluationResult,
    SuiteResult,
    read_base_path,
    read_evaluation,
)
from posttrain.metrics import Interval
from posttrain.tables import DamagedFile, write_json


def capability(mean: float, *, constant: float, at_k: dict[int, float]) -> CapabilityResult:
    interval = Interval(mean=mean, low=mean - 0.1, high=mean + 0.1)
    return CapabilityResult(
        pass_at_1=interval, pass_at_k=at_k, constant=constant, num_prompts=3, tokens=10
    )


def suite(**capabilities: CapabilityResult) -> SuiteResult:
    interval = Interval(mean=0.5, low=0.4, high=0.6)
    return SuiteResult(capabilities=capabilities, macro=interval, tokens=20, seconds=1.5)


def test_averages_are_over_capabilities_and_the_ks_that_all_have() -> None:
    found = suite(
        a=capability(0.5, constant=0.1, at_k={1: 0.5, 2: 0.75}),
        b=capability(1.0, constant=0.3, at_k={1: 1.0, 2: 1.0, 4: 1.0}),
    )
    assert found.macro_pass_at_k == {1: 0.75, 2: 0.875}
    assert found.macro_constant == pytest.approx(0.2)
    assert found.num_prompts == 6


def test_an_evaluation_reads_back_with_nan_where_json_has_null(tmp_path: Path) -> None:
    open_suite = suite(chat=capability(0.5, constant=math.nan, at_k={4: math.nan}))
    result = EvaluationResult(suites={"heldout": open_suite}, tokens=20, seconds=2.5)
    result.write(tmp_path)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["suites"]["heldout"]["capabilities"]["chat"]["constant"] is None
    back = read_evaluation(tmp_path)
    chat = back.suites["heldout"].capabilities["chat"]
    assert math.isnan(chat.constant)
    assert math.isnan(chat.pass_at_k[4])
    assert math.isnan(back.suites["heldout"].macro_constant)
    assert (back.tokens, back.seconds, chat.num_prompts) == (20, 2.5, 3)
    json.dumps(back.suites["heldout"].as_json(), allow_nan=False)


@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"suites": {"a": {}}, "tokens": 1}'])
def test_a_damaged_evaluation_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(DamagedFile, match=r"summary\.json"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize("value", [[], {}, {"path": 3}])
def test_a_model_stage_without_a_path_is_damaged(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "model.json", value)
    with pytest.raises(DamagedFile, match=r"model\.json"):
        read_base_path(tmp_path)
