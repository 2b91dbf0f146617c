"""A stage that leaves other artefacts than before has a new version: see tests/golden_run.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden_run import Facts, complaint, complaints, differences, read_stored, versions_of

from posttrain.pipeline import STAGES


@pytest.fixture(scope="module")
def found_complaints(tiny_run: Path) -> dict[str, str]:
    return complaints(tiny_run / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", [stage.name for stage in STAGES])
def test_a_stage_leaves_what_its_version_says(found_complaints: dict[str, str], name: str) -> None:
    if name not in found_complaints:
        pytest.skip(f"{name} reads a stage whose artefacts changed")
    assert not found_complaints[name], found_complaints[name]


def test_every_stage_has_stored_artefacts_of_its_version() -> None:
    stored = {name: facts["versions"] for name, facts in read_stored().items()}
    assert stored == {stage.name: versions_of(stage.name) for stage in STAGES}


STORED = {"versions": {"model": 1}, "exact": {"files": ["a"]}, "near": {"loss": [1.0, 0.5]}}


CURRENT = versions_of("model")["model"]


@pytest.mark.parametrize(
    ("version", "exact", "losses", "said"),
    [
        (CURRENT, {"files": ["a"]}, [1.0, 0.52], ""),
        (99, {"files": ["a"]}, [1.0, 0.5], "stage model or one that it reads has a new version"),
        (
            CURRENT,
            {"files": ["a", "b"]},
            [1.0, 0.5],
            "stage model's artefacts changed: raise its version",
        ),
        (CURRENT, {"files": ["a"], "rows": 3}, [1.0, 0.5], "rows: null -> 3"),
        (CURRENT, {}, [1.0, 0.5], 'files: ["a"] -> null'),
        (CURRENT, {"files": ["a"]}, [1.0, 0.7], "loss: [1.0, 0.5] -> [1.0, 0.7], tolerance 0.1"),
        (CURRENT, {"files": ["a"]}, [1.0], "loss: [1.0, 0.5] -> [1.0]"),
    ],
)
def test_the_complaint_says_what_changed_and_what_to_do(
    version: int, exact: dict[str, object], losses: list[float], said: str
) -> None:
    found = Facts(exact=exact, near={"loss": (losses, 0.1)})
    answer = complaint("model", {**STORED, "versions": {"model": version}}, found)
    assert said in answer
    assert bool(said) == bool(answer)


def test_a_number_that_is_no_longer_there_is_a_difference() -> None:
    assert differences(STORED, Facts(exact={"files": ["a"]}))
