"""benchmarks.gpu without a GPU: its cases run on tiny shapes, and what fails costs one row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import grouped, head, layer, offload, quantizing, start
from benchmarks.gpu.cases import Case, NotMeasured, Setting
from benchmarks.gpu.point import append, in_short

TINY = Setting(device="cpu", is_tiny=True)
ROOT = Path(__file__).parent.parent


def test_without_a_device_every_point_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "has_cuda", lambda: False)
    outcomes = {
        name: command.measure(name, device="cuda", shapes="scout", seconds=60)
        for name in command.POINTS
    }
    result = command.result_of(outcomes, device="cuda", shapes="scout")
    assert [row[2] for row in result.rows] == ["not measured: no CUDA device"] * 7


def test_a_point_without_time_left_is_not_started() -> None:
    (outcome,) = command.measure("head", device="cpu", shapes="tiny", seconds=1)
    assert outcome["not_measured"] == "no time was left"


@pytest.mark.parametrize(
    ("lines", "ending", "expected"),
    [
        ([{"case": "a"}, {"case": "a", "text": "1"}], "", ["1"]),
        ([{"case": "a"}, {"case": "a", "text": "1"}, {"case": "b"}], "killed", ["1", "killed"]),
        ([{"case": "a"}, {"case": "a", "text": "1"}], "killed", ["1", "killed"]),
        ([], "exit code 1: no trl", ["exit code 1: no trl"]),
        ([{"case": "a"}, {"case": "a", "not_measured": "no memory"}], "", ["no memory"]),
    ],
)
def test_a_case_that_never_ended_is_not_measured(
    lines: list[dict[str, str]], ending: str, expected: list[str]
) -> None:
    found = [row.get("text") or row["not_measured"] for row in command.settled(lines, ending)]
    assert found == expected


def test_outcomes_are_on_disk_line_by_line(tmp_path: Path) -> None:
    append(tmp_path / "f", {"case": "a"})
    append(tmp_path / "f", {"case": "a", "not_measured": in_short(ValueError("two\nlines"))})
    rows = [json.loads(line) for line in (tmp_path / "f").read_text().splitlines()]
    assert rows[1]["not_measured"] == "ValueError: two lines"


ERRORS = {name: case for name, case in grouped.cases(TINY).items() if name.startswith("errors")}


@pytest.mark.parametrize("name", ERRORS)
def test_grouped_products_are_as_exact_as_a_loop(name: str) -> None:
    figures = ERRORS[name]().figures
    for key, error in figures["posttrain"].items():
        assert 1e-4 < error < 1.5 * figures["loop"][key]
    assert figures["idle_gradient"] == 0


def test_packing_twice_gives_the_same_bits() -> None:
    cases = {name: case for name, case in quantizing.cases(TINY).items() if "bits" in name}
    assert len(cases) == 12
    for case in cases.values():
        assert case().text.endswith("equal")


def test_the_fused_head_agrees_with_full_logits() -> None:
    figures = head.cases(TINY)["errors against fp32 logits"]().figures
    assert 0 < figures["log_probs"] < 2e-3
    assert 0 < figures["d_states"] < 1e-2


def attempted(cases: Mapping[str, Case]) -> dict[str, str]:
    """Run cases; text or the reason why not."""
    found: dict[str, str] = {}
    for name, case in cases.items():
        try:
            found[name] = case().text
        except NotMeasured as reason:
            found[name] = f"not measured: {reason}"
    return found


def test_what_needs_a_device_says_so_on_the_cpu() -> None:
    found = attempted(offload.cases(TINY))
    assert found.pop("move, as it is").startswith("0.00105 GB")
    assert set(found.values()) == {"not measured: no CUDA device to pin memory for"}


@pytest.mark.slow
def test_every_way_to_keep_a_layer_trains() -> None:
    found = attempted(layer.cases(TINY))
    assert len(found) == 7
    assert not [text for text in found.values() if "not measured" in text]


@pytest.mark.slow
def test_the_command_writes_the_table(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--shapes", "tiny"),
            *("--only", "head", "--out", str(tmp_path)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "gpu-cpu-tiny.md").read_text()
    assert page.strip() in done.stdout
    assert "not measured" not in page
    assert "no figure here says anything of a GPU" in page


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "fork after: nothing",
        "fork after: import posttrain.rl, posttrain.engines",
        "spawn after: torch.cuda.init()",
    ],
)
def test_a_child_of_a_process_that_only_imported_works(name: str) -> None:
    """Setting of the benchmark on the CPU, with no call into CUDA."""
    assert start.cases(TINY)[name]().text == "CUDA not initialised in the parent; the child works"


INTERPRETED = """
import torch
from posttrain.models.quantized import Fp8, Nf4
from benchmarks.gpu.dequantizing import dequantize_fp8, dequantize_nf4
torch.manual_seed(0)
for shape in ((3, 128, 100), (1, 64, 1030)):
    weight = torch.randn(shape)
    out = torch.full(shape, float("nan"))
    quantized = Nf4(weight)
    dequantize_nf4(quantized.codes.data, quantized.scale.data, quantized.levels, out)
    assert out.equal(quantized.dense())
    out.fill_(float("nan"))
    quantized = Fp8(weight)
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    dequantize_fp8(quantized.codes.data, quantized.scale.data, values, out)
    assert out.equal(quantized.dense())
print("equal")
"""


def test_triton_unpacks_to_the_same_bits() -> None:
    """By Triton's interpreter, in fp32: it cuts bfloat16 off where a device rounds."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == "equal\n", done.stderr[-2000:]
