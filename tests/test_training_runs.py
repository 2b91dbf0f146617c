"""SFT and DPO of a tiny model: broken off and gone on with, and stopped for health."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trl import SFTTrainer

from posttrain import dpo, sft
from posttrain.errors import HealthStop
from posttrain.models import PolicyPath
from posttrain.recipe.models import Lora, Model
from posttrain.recipe.trainer_blocks import DPOBlock, SFTBlock
from posttrain.records import PreferencePair
from posttrain.tables import file_sha256, read_json, read_metrics, write_json
from posttrain.training import MARKER, SPENT, newest_checkpoint
from tests.builders import make_sample


class Killed(Exception):
    """Stands for a process that is gone."""


def run(base: Path, folder: Path, stage: str, **block: Any) -> dict[str, Any]:
    """Train for six steps in `folder`; what is there already is gone on with."""
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    shared: dict[str, Any] = {
        "policy": PolicyPath(base=base),
        "model": Model(base=str(base), dtype="float32", lora=Lora(rank=2, targets=["attention"])),
        "trainer": (SFTBlock if stage == "sft" else DPOBlock)(
            **{
                "max_steps": 6,
                "save_steps": 2,
                "per_device_train_batch_size": 1,
                "learning_rate": 1e-3,
                **block,
            }
        ),
        "seed": 0,
        "work_dir": folder / "work",
        "out_dir": out,
    }
    if stage == "sft":
        # Each is longer than the one before.
        return sft.train([make_sample(f"{i}+1 " * i, str(i + 1)) for i in range(1, 9)], **shared)
    pairs = [
        PreferencePair(
            prompt_id=f"p{i}",
            prompt=[{"role": "user", "content": f"{i}+1 " * i}],
            chosen=str(i + 1),
            rejected="no",
            corner_case="wrong_answer",
            origin={},
        )
        for i in range(1, 9)
    ]
    return dpo.train(pairs, **shared)


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The process dies when so many steps are done."""
    done = 0

    def die(name: str) -> None:
        nonlocal done
        done += name.endswith(".after_step")
        if done == steps:
            raise Killed

    monkeypatch.setattr("posttrain.training.kill_point", die)


@pytest.mark.parametrize(("stage", "logging_steps"), [("sft", 1), ("sft", 4), ("dpo", 1)])
def test_a_resumed_run_reports_the_tokens_of_all_attempts(
    tiny_llama4: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    logging_steps: int,
) -> None:
    whole = run(tiny_llama4, tmp_path / "whole", stage, logging_steps=logging_steps)
    with monkeypatch.context() as patched:
        kill_after(patched, 4)
        with pytest.raises(Killed):
            run(tiny_llama4, tmp_path / "broken", stage, logging_steps=logging_steps)
    resumed = run(tiny_llama4, tmp_path / "broken", stage, logging_steps=logging_steps)
    assert (resumed["steps"], resumed["resumed_from_step"]) == (6, 2)
    assert resumed["tokens"] == whole["tokens"]
    counts = [
        [
            row[f"{stage}/num_tokens"]
            for row in read_metrics(path / "out" / "metrics.jsonl")
            if f"{stage}/num_tokens" in row
        ]
        for path in (tmp_path / "whole", tmp_path / "broken")
    ]
    assert counts[0] == counts[1] == sorted(counts[0])


def test_a_resumed_run_reports_the_seconds_of_all_attempts(
    tiny_llama4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        kill_after(patched, 4)
        with pytest.raises(Killed):
            run(tiny_llama4, tmp_path, "sft")
    checkpoint = tmp_path / "work" / "checkpoints" / "checkpoint-2"
    assert 0 < read_json(checkpoint / SPENT)["seconds"] < 600
    write_json(checkpoint / SPENT, {"seconds": 1000.0})
    digests = read_json(checkpoint / MARKER)
    write_json(checkpoint / MARKER, {**digests, SPENT: file_sha256(checkpoint / SPENT)})
    assert 1000 < run(tiny_llama4, tmp_path, "sft")["seconds"] < 1600
    last = tmp_path / "work" / "checkpoints" / "checkpoint-6"
    assert 1000 < read_json(last / SPENT)["seconds"] < 1600


def poison(monkeypatch: pytest.MonkeyPatch, what: str, step: int) -> None:
    """From one step's pass comes a loss, or gradients, that are no numbers."""
    original = SFTTrainer.compute_loss

    def compute_loss(self: SFTTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        if self.state.global_step + 1 != step:
            return loss
        if what == "loss":
            return loss * float("nan")
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)


@pytest.mark.parametrize(("what", "step"), [("loss", 3), ("gradient", 3), ("gradient", 4)])
def test_no_checkpoint_is_written_after_a_nan_step(
    tiny_llama4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, step: int
) -> None:
    poison(monkeypatch, what, step)
    with pytest.raises(HealthStop, match="at step 4"):
        run(tiny_llama4, tmp_path, "sft", logging_steps=100)
    good = tmp_path / "work" / "checkpoints" / "checkpoint-2"
    assert newest_checkpoint(tmp_path / "work") == good
    assert not (tmp_path / "out" / "policy").exists()


@pytest.mark.parametrize("block", [{"save_strategy": "no"}, {"save_strategy": "epoch"}])
def test_no_policy_is_written_after_a_nan_step(
    tiny_llama4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: dict[str, Any]
) -> None:
    poison(monkeypatch, "loss", 6)
    with pytest.raises(HealthStop, match="loss is nan at step 6"):
        run(tiny_llama4, tmp_path, "sft", logging_steps=100, **block)
    assert newest_checkpoint(tmp_path / "work") is None
    assert not (tmp_path / "out" / "policy").exists()


def test_no_epoch_checkpoint_is_written_after_a_nan_step(
    tiny_llama4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, "loss", 3)
    with pytest.raises(HealthStop, match="loss is nan at step 4"):
        # Four steps of two rows each are an epoch.
        run(
            tiny_llama4,
            tmp_path,
            "sft",
            logging_steps=100,
            save_strategy="epoch",
            per_device_train_batch_size=2,
        )
    assert newest_checkpoint(tmp_path / "work") is None


def test_losses_are_logged_unfiltered(
    tiny_llama4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, "loss", 3)
    with pytest.raises(HealthStop, match="loss is nan at step 3") as stop:
        run(tiny_llama4, tmp_path, "sft")
    assert "sft.trainer.learning_rate" in stop.value.hint
    rows = read_metrics(tmp_path / "work" / "metrics.jsonl")
    assert [row["sft/loss"] is None for row in rows] == [False, False, True]
