"""SFT and DPO of a tiny model: broken off and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain import dpo, sft
from posttrain.models import PolicyPath
from posttrain.recipe.models import Lora, Model
from posttrain.records import PreferencePair
from posttrain.tables import file_sha256, read_json, read_metrics, write_json
from posttrain.training import MARKER, SPENT
from tests.conftest import make_sample


class Killed(Exception):
    """Stands for a process that is gone."""


def run(base: Path, folder: Path, stage: str, **block: Any) -> dict[str, Any]:
    """Train for six steps in `folder`; what is there already is gone on with."""
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    shared: dict[str, Any] = {
        "policy": PolicyPath(base=base),
        "model": Model(base=str(base), dtype="float32", lora=Lora(rank=2, targets=["attention"])),
        "trainer": {
            "max_steps": 6,
            "save_steps": 2,
            "per_device_train_batch_size": 1,
            "learning_rate": 1e-3,
            **block,
        },
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

    monkeypatch.setattr("posttrain.training.fault_point", die)


@pytest.mark.parametrize(("stage", "logging_steps"), [("sft", 1), ("dpo", 1)])
def test_a_run_that_was_broken_off_reports_the_tokens_of_the_whole(
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


def test_seconds_are_of_every_step_that_made_the_policy(
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
