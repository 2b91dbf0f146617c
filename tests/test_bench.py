"""The benchmarks measure what they say, and their pages say what was measured."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.experts.contenders import OURS, STOCK, ExpertWork
from benchmarks.experts.costs import TensorPeak
from benchmarks.experts.speed import training
from posttrain.bench.engine import (
    KINDS,
    Contender,
    Measured,
    Work,
    bench_engine,
    summarise,
    work_of,
)
from posttrain.bench.measure import (
    Result,
    describe_circumstances,
    markdown,
    spread_of,
    take_turns,
    write_result,
)
from posttrain.bench.runs import bench_results, bench_stages
from posttrain.engines import SamplingRequest
from posttrain.errors import RecipeError, SetupError
from posttrain.recipe import load_recipe
from posttrain.recipe.models import EngineSpec
from posttrain.run_directory import FileHashes, seal_stage
from posttrain.tables import read_json

TINY = Path(__file__).parent.parent / "recipes" / "tiny.yaml"
WORK = Work(
    base=Path("base"),
    spec=EngineSpec(kind="vllm"),
    dtype="float32",
    prompts_P=[[1, 2, 3], [1]],
    request=SamplingRequest(num_generations=2, max_tokens=5),
)


def test_turns_rotate_and_warm_up_is_left_out() -> None:
    calls: list[tuple[str, int]] = []

    def contender(name: str):
        return lambda number: calls.append((name, number)) or number

    taken = take_turns({name: contender(name) for name in "abc"}, num_rounds=3, num_warmups=1)
    assert taken == {"a": [0, 1, 2], "b": [0, 1, 2], "c": [0, 1, 2]}
    rounds = [[name for name, number in calls if number == n] for n in (-1, 0, 1, 2)]
    assert ["".join(order) for order in rounds] == ["cab", "abc", "bca", "cab"]


def test_median_is_not_the_mean() -> None:
    spread = spread_of([1.0, 9.0, 2.0, 3.0])
    assert (spread.median, spread.low, spread.high, spread.num_runs) == (2.5, 1.0, 9.0, 4)


def measured(seconds: float, num_tokens: int = 100, digest: str = "same") -> Measured:
    return Measured(seconds=seconds, num_tokens=num_tokens, digest=digest)


def test_ratios_pair_the_rounds() -> None:
    """The machine halves its speed in round two: the paired ratio does not notice."""
    ours, raw, raw_logprobs = KINDS
    result = summarise(
        {
            ours: [measured(1.0), measured(2.0)],
            raw: [measured(0.9), measured(1.8)],
            raw_logprobs: [measured(1.0), measured(2.0, digest="other")],
        },
        work=WORK,
        name="engine-x",
    )
    assert result.figures["ratios"][raw]["low"] == pytest.approx(0.9)
    assert result.figures["ratios"][raw]["high"] == pytest.approx(0.9)
    assert result.figures["within"] is False
    assert result.figures["same_tokens"] == [True, False]
    assert [row[0] for row in result.rows] == list(KINDS)
    assert result.rows[1][4] == "0.900"
    assert "missed" in result.notes[-1]


def write_manifest(run_dir: Path, stage: str, seconds: float, gib: float | None) -> None:
    (run_dir / "stages" / stage).mkdir(parents=True)
    seal_stage(
        run_dir / "stages" / stage,
        hashes=FileHashes(),
        stage=stage.partition("-")[2],
        key="",
        key_parts={},
        seed=0,
        started=0.0,
        seconds=seconds,
        peak_rss_bytes=None if gib is None else int(gib * 2**30),
        counts={"prompts": 1200},
    )


def test_stages_come_in_order_with_their_total(tmp_path: Path) -> None:
    write_manifest(tmp_path, "10-pairs", 1.0, None)
    write_manifest(tmp_path, "2-data", 3.0, 0.5)
    write_manifest(tmp_path, "8-rl", 6.0, 2.0)
    result = bench_stages(tmp_path)
    assert [list(row) for row in result.rows] == [
        ["data", "3.0", "30%", "0.50", "1,200 prompts"],
        ["rl", "6.0", "60%", "2.00", "1,200 prompts"],
        ["pairs", "1.0", "10%", "-", "1,200 prompts"],
        ["all", "10.0", "100%", "2.00", ""],
    ]


def test_a_directory_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no finished stage"):
        bench_stages(tmp_path)


def test_the_two_files_of_a_result(tmp_path: Path) -> None:
    result = Result(
        name="x", title="X", columns=["a", "b"], rows=[["1|2", "3"]], figures={"b": 3}, notes=["n"]
    )
    paths = write_result(result, tmp_path)
    assert [path.name for path in paths] == ["x.json", "x.md"]
    kept = read_json(paths[0])
    assert kept["figures"] == {"b": 3}
    assert kept["machine"]["num_cpus"] >= 1
    assert kept["packages"]["posttrain"]
    page = paths[1].read_text()
    assert page.splitlines()[0] == "# X"
    assert "| 1\\|2 | 3 |" in page
    assert kept["machine"]["cpu"] in page


def test_a_bed_runs_by_one_command_which_its_result_names(tmp_path: Path) -> None:
    command = ["-m", "benchmarks.cli", "--runs", "1", "--out", str(tmp_path)]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, *command], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kept = read_json(tmp_path / "cli.json")
    assert kept["command"] == shlex.join(["python", *command])
    assert [len(found["seconds"]) for found in kept["figures"].values()] == [1, 1]


def test_page_says_when_the_tree_was_dirty() -> None:
    result = Result(name="x", title="X", columns=["a"], rows=[], figures={})
    context = {**describe_circumstances(), "commit": "abc", "uncommitted_changes": True}
    assert "commit abc with uncommitted changes" in markdown(result, context)


def test_results_are_those_of_the_evaluations(tiny_run: Path, tmp_path: Path) -> None:
    run_dir = tiny_run / "run"
    result = bench_results(run_dir)
    json.dumps(result.figures)
    stages = list(dict.fromkeys(row[0] for row in result.rows))
    assert stages == ["base", "sft", "rl", "dpo"]
    for stage in stages:
        path = next(run_dir.glob(f"stages/*-eval-{stage}/summary.json"))
        measured = read_json(path)["suites"]["heldout"]
        rows = {row[1]: row for row in result.rows if row[0] == stage}
        assert rows.keys() == {*measured["capabilities"], "macro average"}
        assert rows["macro average"][2].startswith(f"{measured['macro']['mean']:.3f} [")
    steps = [(c["before"], c["after"]) for c in result.figures["changes"]]
    assert steps == [("base", "sft"), ("sft", "rl"), ("rl", "dpo"), ("base", "dpo")]
    with pytest.raises(RecipeError, match="no finished evaluation"):
        bench_results(tmp_path)


@pytest.mark.slow
def test_a_contender_lives_in_its_own_process(tiny_llama4: Path, tmp_path: Path) -> None:
    loaded = load_recipe(TINY, [f"model.base={tiny_llama4}", "engine.kind=transformers"])
    work = work_of(loaded, cache_dir=tmp_path, num_prompts=3)
    assert len(work.prompts_P) == 3
    assert loaded.recipe.rl is not None
    assert work.request.num_generations == loaded.recipe.rl.trainer.num_generations
    with Contender("ours", work, "posttrain") as contender:
        first, other, again = (contender.measure(seed) for seed in (1, 2, 1))
    assert first.digest == again.digest != other.digest
    assert 0 < first.num_tokens <= 3 * work.request.num_generations * work.request.max_tokens
    with pytest.raises(SetupError, match="compares with vLLM"):
        bench_engine(loaded, cache_dir=tmp_path)


@pytest.mark.slow
def test_a_contender_that_dies_is_named(tmp_path: Path) -> None:
    work = replace(WORK, base=tmp_path / "nothing", spec=EngineSpec(kind="transformers"))
    with (
        pytest.raises(SetupError, match="engine of 'ours' died"),
        Contender("ours", work, "posttrain"),
    ):
        pass


@pytest.mark.slow
def test_engine_against_raw_vllm(tiny_llama4: Path, tmp_path: Path) -> None:
    """The real comparison on the tiny model; how fast each is, is no test's business."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    loaded = load_recipe(TINY, [f"model.base={tiny_llama4}", "engine.kind=vllm"])
    result = bench_engine(loaded, cache_dir=tmp_path, num_prompts=4, num_rounds=2)
    json.dumps(result.figures)
    assert [len(rates) for rates in result.figures["rates"].values()] == [2, 2, 2]
    assert all(rate > 0 for rates in result.figures["rates"].values() for rate in rates)
    assert result.figures["ratios"].keys() == result.figures["rates"].keys()


def test_the_peak_of_tensors_is_that_of_what_lives_at_once() -> None:
    kept = torch.zeros(1000)  # there before, so not counted
    with TensorPeak() as peak:
        first = torch.zeros(3000)
        view = first.view(30, 100)
        view.add_(1)
        second = first + 1
        del first, view
        third = torch.zeros(1000) + kept
        del second, third
        torch.zeros(2000)
    # first and second together are 6,000 floats; second, third and its zeros 5,000
    assert peak.peak_bytes == 4 * 6000


def test_a_step_of_grouped_experts_costs_the_flops_of_its_tokens() -> None:
    """Frozen products go forward and backward once each, adapters' once more for their own."""
    work = ExpertWork(
        num_experts=8, hidden_size=64, intermediate_size=32, rank=4, num_tokens=96, num_layers=0
    )
    cost = training(OURS, work, "cpu").cost
    routed = 3 * 64 * 32
    shared = 3 * 64 * 32
    router = 64 * 8
    adapters = 4 * (64 + 2 * 32) + 4 * (32 + 64)
    assert cost.flops == 2 * 96 * (2 * (routed + shared + router) + 3 * adapters)
    dense = training(STOCK, work, "cpu").cost
    assert dense.flops > 5 * cost.flops
    assert dense.saved_bytes > 5 * cost.saved_bytes
