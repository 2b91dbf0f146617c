"""The RL stage with a tiny model: every shipped curriculum, broken off and gone on with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

from posttrain.curriculum import AdaptiveSpec
from posttrain.data import levelled_families
from posttrain.errors import HealthStop, SetupError
from posttrain.models import PolicyPath
from posttrain.recipe.load import load_curriculum
from posttrain.recipe.models import EngineSpec, Lora, Model
from posttrain.recipe.rows import DataSource
from posttrain.recipe.schema import Variants
from posttrain.records import Outcome, Prompt, content_hash
from posttrain.rl import RlInputs, train
from posttrain.rl.session import STATE_FILE, RolloutSession
from posttrain.rl.trainer import CurriculumGRPOTrainer, compact
from posttrain.tables import read_metrics, read_table, write_json
from tests.builders import make_prompt, rl_section

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
CURRICULA = sorted((ROOT / "curricula").glob("*.yaml"))


class Killed(Exception):
    """Stands for a process that is gone."""


def decide_by(monkeypatch: pytest.MonkeyPatch, verdict: Callable[[Prompt, str], Outcome]) -> None:
    """Let `verdict` stand in for the verifiers."""

    def submit_group(prompt: Prompt, answers: Sequence[tuple[str, bool]]) -> list[Future[Outcome]]:
        futures: list[Future[Outcome]] = []
        for text, _truncated in answers:
            futures.append(Future())
            futures[-1].set_result(verdict(prompt, text))
        return futures

    monkeypatch.setattr("posttrain.engines.rollouts.submit_group", submit_group)


@pytest.fixture(autouse=True)
def _verdicts_by_lot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of random weights is never right: what it wrote decides by its hash, more often for
    some prompts than for others.
    """

    def verdict(prompt: Prompt, text: str) -> Outcome:
        lot = int(content_hash(prompt.prompt_id, text), 16) % 8
        passed = lot < int(content_hash(prompt.prompt_id), 16) % 9
        return Outcome(passed=passed, score=float(passed), why="by lot")

    decide_by(monkeypatch, verdict)


def pool(num: int = 40) -> list[Prompt]:
    return [make_prompt(f"{i} plus", str(i % 10), capability="ab"[i % 2]) for i in range(num)]


def run(
    base: Path, folder: Path, curriculum: Any, prompts: Sequence[Prompt], **how: Any
) -> dict[str, Any]:
    """Train in `folder`; what is there already is gone on with."""
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    trainer = {
        "max_steps": 5,
        "save_steps": 2,
        "num_generations": 4,
        "per_device_train_batch_size": 16,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
        **how.pop("trainer", {}),
    }
    given = {name: how.pop(name) for name in ("tags", "families") if name in how}
    return train(
        rl_section(trainer=trainer, curriculum=curriculum, **how),
        RlInputs(prompts=prompts, policy=PolicyPath(base=base), **given),
        model=Model(base=str(base), dtype="float32", lora=Lora(rank=4)),
        engine=EngineSpec(kind="transformers", max_model_len=192, parity_tolerance=1e-3),
        seed=0,
        work_dir=folder / "work",
        out_dir=out,
    )


def adaptive(**keys: Any) -> AdaptiveSpec:
    return AdaptiveSpec(kind="adaptive", **{"max_refills": 2, **keys})


def tables(out: Path) -> dict[str, Any]:
    """Everything recorded but for times, and the end state to the bit."""
    found: dict[str, Any] = {}
    for name in ("rollouts", "probes", "prompts", "variants"):
        for path in sorted((out / name).glob("*.parquet")):
            rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_table(path)]
            found[f"{name}/{path.name}"] = rows
    return found | {
        "flow": read_table(out / "curriculum.jsonl"),
        "state": (out / STATE_FILE).read_bytes(),
        "weights": (out / "policy" / "adapter_model.safetensors").read_bytes(),
    }


@pytest.mark.parametrize("path", CURRICULA, ids=lambda path: path.stem)
def test_every_shipped_curriculum_drives_two_steps(
    tiny_llama4: Path, tmp_path: Path, path: Path
) -> None:
    prompts = pool()
    tags = {p.prompt_id: i / 40 for i, p in enumerate(prompts[:20])}
    summary = run(
        tiny_llama4, tmp_path, load_curriculum(path), prompts, tags=tags, trainer={"max_steps": 2}
    )
    assert summary["steps"] == 2
    flow = read_table(tmp_path / "out" / "curriculum.jsonl")
    assert {row["step"] for row in flow} == {0, 1}
    assert sum(row["trained"] + row["filler"] for row in flow) == 2 * 4
    assert sum(row["tokens"] for row in flow) == summary["generated_tokens"]
    assert sum(summary["tokens_by_purpose"].values()) == summary["generated_tokens"]
    assert sum(summary["tokens_by_fate"].values()) == summary["generated_tokens"]
    first = len(read_table(tmp_path / "out" / "rollouts" / "step-000000.parquet"))
    predicted = sum(num for _, _, num in summary["reliability"])
    assert predicted == (first if path.stem.startswith("adaptive") else 0), (
        "the last is not settled"
    )
    for step in (0, 1):
        rows = read_table(tmp_path / "out" / "rollouts" / f"step-{step:06d}.parquet")
        assert all(row["reason"] and isinstance(row["decision"], dict) for row in rows)
    metrics = read_metrics(tmp_path / "out" / "metrics.jsonl")[:2]
    for row in metrics:
        assert any(key.startswith("curriculum/") for key in row)
    assert sum(row["rl/tokens/generated"] for row in metrics) == summary["generated_tokens"]
    assert sum(row["rl/tokens/probe"] for row in metrics) == summary["scored_tokens"]


def test_answers_without_signal_are_as_long_as_they_are(
    tiny_llama4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verdict(prompt: Prompt, text: str) -> Outcome:
        passed = prompt.capability == "a" or len(text) % 2 == 0
        return Outcome(passed=passed, score=float(passed), why="by length")

    decide_by(monkeypatch, verdict)
    spec = load_curriculum(ROOT / "curricula" / "uniform.yaml")
    run(tiny_llama4, tmp_path, spec, pool(), trainer={"max_steps": 1})
    drawn = read_table(tmp_path / "out" / "rollouts" / "step-000000.parquet")
    assert {rollout["use"] for rollout in drawn} == {"trained", "filler"}
    lengths = [len(rollout["completion_ids"]) for rollout in drawn]
    (row, *_) = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert row["rl/completions/mean_length"] == pytest.approx(sum(lengths) / len(lengths))
    assert row["rl/completions/min_length"] == min(lengths) > 0
    ended = [len(r["completion_ids"]) for r in drawn if r["finish_reason"] == "stop"]
    assert row["rl/completions/max_terminated_length"] == max(ended, default=0)


@pytest.mark.parametrize("killed_at", [1, 3, 4])
def test_a_run_that_was_broken_off_decides_as_one_that_was_not(
    tiny_llama4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """With pilots, probes, tags, system instructions and a source whose level moves."""
    source = {
        "reasoning_gym": {"chain_sum": {"min_terms": 2, "max_terms": 2}},
        "size": 8,
        "capability": "a",
        "levels": {"start": 0, "min_rollouts": 4, "rise": 0.5, "fall": 0.2},
    }
    families = levelled_families(DataSource.model_validate(source), "rl.data[1]")
    prompts = pool()
    given: dict[str, Any] = {
        "tags": {p.prompt_id: i / 40 for i, p in enumerate(prompts[:30])},
        "families": families,
        "system_prompts": ["Be brief.", None],
        # A model of random weights: what it writes is noise, and enough of it agrees on nothing.
        "variants": Variants(max_tokens=12, num_answers=2, agreement=0.0, high_agreement=1.0),
    }
    run(tiny_llama4, tmp_path / "whole", adaptive(), prompts, **given)
    whole = tables(tmp_path / "whole" / "out")
    assert any(name.startswith("prompts/") for name in whole)
    assert any(name.startswith("probes/") for name in whole)
    assert any(name.startswith("variants/") for name in whole)
    visits = 0

    def fatal(name: str) -> None:
        nonlocal visits
        visits += name == "rl.after_rollouts"
        if name == "rl.after_rollouts" and visits == killed_at + 1:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("posttrain.rl.session.kill_point", fatal)
        with pytest.raises(Killed):
            run(tiny_llama4, tmp_path / "broken", adaptive(), prompts, **given)
    summary = run(tiny_llama4, tmp_path / "broken", adaptive(), prompts, **given)
    assert summary["resumed_from_step"] == killed_at // 2 * 2
    broken = tables(tmp_path / "broken" / "out")
    for name in whole.keys() | broken.keys():
        assert broken[name] == whole[name], name


def test_a_checkpoint_of_an_older_version_is_named(tiny_llama4: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    write_json(folder / "curriculum.json", {"kind": "band"})
    session = RolloutSession.__new__(RolloutSession)
    with pytest.raises(SetupError, match="does not read") as error:
        session.restore(folder, 2)
    assert "start the RL stage over" in error.value.hint


@pytest.mark.parametrize("passed", [True, False])
def test_a_dead_pool_is_said_trained_on_for_a_while_and_then_stopped(
    tiny_llama4: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    passed: bool,
) -> None:
    outcome = Outcome(passed=passed, score=float(passed), why="always")
    decide_by(monkeypatch, lambda prompt, text: outcome)
    spec = adaptive(max_steps_without_signal=3)
    with pytest.raises(HealthStop, match="no group had signal for 3 steps") as error:
        run(tiny_llama4, tmp_path, spec, pool())
    assert "max_steps_without_signal" in error.value.hint
    assert ("all passed" if passed else "all failed") in error.value.message
    said = capsys.readouterr()
    assert (said.out + said.err).count("groups had signal (") == 1
    assert "(stopped)" in said.err
    recorded = sorted((tmp_path / "work" / "rollouts").iterdir())
    assert len(recorded) == 3
    uses = {row["use"] for path in recorded for row in read_table(path)}
    assert "trained" not in uses
    assert "filler" in uses


def test_the_state_of_another_pool_is_refused_by_name(tiny_llama4: Path, tmp_path: Path) -> None:
    run(tiny_llama4, tmp_path, adaptive(), pool(), trainer={"max_steps": 2})
    (tmp_path / "out").rename(tmp_path / "old")
    with pytest.raises(ValueError, match="prompt"):
        run(tiny_llama4, tmp_path, adaptive(), pool()[1:], trainer={"max_steps": 4})


@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize("baseline", ["posterior", "leave_one_out"])
def test_the_posterior_can_stand_in_for_the_groups_own_mean(
    tiny_llama4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, baseline: Any, scale: str
) -> None:
    """What reaches the loss is outcome less belief, of the beliefs that the table records."""
    reached: list[list[float]] = []
    whole = CurriculumGRPOTrainer._generate_and_score_completions

    def noted(self: Any, inputs: Any) -> Any:
        output = whole(self, inputs)
        reached.append(output["advantages"].tolist())
        return output

    monkeypatch.setattr(CurriculumGRPOTrainer, "_generate_and_score_completions", noted)
    spec = adaptive(baseline=baseline, pilot=False, max_refills=0)
    trainer = {"max_steps": 1, "scale_rewards": scale}
    run(tiny_llama4, tmp_path, spec, pool(), trainer=trainer)
    rows = read_table(tmp_path / "out" / "rollouts" / "step-000000.parquet")
    expected: list[float] = []
    for start in range(0, len(rows), 4):
        passes = [float(row["passed"]) for row in rows[start : start + 4]]
        alpha, beta = (rows[start]["decision"][name] for name in ("alpha", "beta"))
        mean = (alpha + sum(passes)) / (alpha + beta + 4)
        for own in passes:
            others = (alpha + sum(passes) - own) / (alpha + beta + 3)
            deviation = (mean - mean**2) ** 0.5 if scale == "group" else 1.0
            compared = mean if baseline == "posterior" else others
            expected.append((own - compared) / deviation)
    assert sorted(reached[0]) == pytest.approx(sorted(expected), abs=1e-5)


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo", "grpo"])
def test_what_cannot_move_the_loss_is_left_out_and_moves_nothing(
    tiny_llama4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss_type: str
) -> None:
    """Loss and gradients are TRL's own on the whole micro-batch, of fewer rows."""
    sizes: list[tuple[int, int]] = []
    ours = CurriculumGRPOTrainer.compute_loss

    def gradients(self: Any, loss: Any) -> list[Any]:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return list(torch.autograd.grad(loss, trained, allow_unused=True))

    def compared(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        whole = GRPOTrainer.compute_loss(self, model, inputs, *args, **kwargs)
        short = ours(self, model, inputs, *args, **kwargs)
        torch.testing.assert_close(short, whole, rtol=1e-5, atol=1e-6)
        for mine, theirs in zip(gradients(self, short), gradients(self, whole), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
        told = compact(inputs, drop_rows=loss_type != "grpo")
        sizes.append((len(inputs["prompt_ids"]), len(told["prompt_ids"])))
        return ours(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(CurriculumGRPOTrainer, "compute_loss", compared)
    spec = adaptive(pilot=False, max_refills=0, probe=0)
    run(tiny_llama4, tmp_path, spec, pool(), trainer={"max_steps": 4, "loss_type": loss_type})
    assert any(short < whole for whole, short in sizes) == (loss_type != "grpo")


def test_a_first_step_can_measure_more_prompts_than_it_trains_on(
    tiny_llama4: Path, tmp_path: Path
) -> None:
    spec = adaptive(max_refills=0, pilot=False)
    run(tiny_llama4, tmp_path, spec, pool(), pilot_prompts=20, trainer={"max_steps": 2})
    first, second = (
        [row for row in read_table(tmp_path / "out" / "curriculum.jsonl") if row["step"] == step]
        for step in (0, 1)
    )
    assert sum(row["proposed"] for row in first) == 20
    assert sum(row["trained"] for row in first) == 4
    assert sum(row["proposed"] for row in second) == 4
