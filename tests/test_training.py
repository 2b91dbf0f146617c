from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from posttrain.errors import HealthStop, PosttrainError, RecipeError, SetupError
from posttrain.recipe.schema import Recipe
from posttrain.recipe.trainer_blocks import SFTBlock
from posttrain.tables import MetricsLog, read_metrics
from posttrain.training import (
    MARKER,
    RunCallback,
    build_trainer,
    check_trainer_blocks,
    newest_checkpoint,
    trainer_arguments,
)


def write_checkpoint(work: Path, step: int) -> Path:
    """A complete checkpoint as the callback leaves it."""
    folder = work / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "adapter.bin").write_bytes(b"weights" * step)
    (folder / "optimizer.bin").write_bytes(b"moments" * step)
    args = cast(TrainingArguments, SimpleNamespace(output_dir=str(work / "checkpoints")))
    state = TrainerState(global_step=step, is_world_process_zero=True)
    RunCallback("sft", MetricsLog(work / "metrics.jsonl")).on_save(args, state, TrainerControl())
    return folder


def test_newest_checkpoint_ignores_incomplete_ones(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 9)
    newest = write_checkpoint(tmp_path, 10)
    assert newest_checkpoint(tmp_path) == newest


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "no marker"])
@pytest.mark.parametrize("file", ["adapter.bin", "optimizer.bin"])
def test_newest_checkpoint_moves_damaged_ones_aside(tmp_path: Path, damage: str, file: str) -> None:
    older, newer = write_checkpoint(tmp_path, 9), write_checkpoint(tmp_path, 10)
    target = newer / (MARKER if damage == "no marker" else file)
    data = target.read_bytes()
    if damage == "truncate":
        target.write_bytes(data[:-1])
    elif damage == "flip":
        target.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    else:
        target.unlink()
    assert newest_checkpoint(tmp_path) == older
    assert len(list((tmp_path / "incomplete").iterdir())) == 1


def test_newest_checkpoint_is_none_without_checkpoints(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_on_log_stops_on_numbers_that_are_not_finite(
    tmp_path: Path, name: str, value: float
) -> None:
    callback = RunCallback("rl", MetricsLog(tmp_path / "metrics.jsonl"))
    state = TrainerState(global_step=3, is_world_process_zero=True)
    args = cast(TrainingArguments, SimpleNamespace())
    callback.on_log(args, state, TrainerControl(), logs={name: 1.0})
    with pytest.raises(HealthStop, match=f"{name} is .* at step 3"):
        callback.on_log(args, state, TrainerControl(), logs={name: value})
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [3, 3]


def test_trainer_arguments_follow_the_recipe(tmp_path: Path) -> None:
    block = SFTBlock(learning_rate=3e-4, save_total_limit=7)
    args = trainer_arguments(block, stage="sft", dtype="float32", seed=5, work_dir=tmp_path)
    assert (args.learning_rate, args.save_total_limit, args.seed, args.bf16) == (3e-4, 7, 5, False)


def test_check_trainer_blocks_raises_what_trl_rejects() -> None:
    section = {"data": [{"reasoning_gym": ["gcd"], "size": 3}]}
    recipe = Recipe.model_validate(
        {
            "model": {"base": "x"},
            "rl": section,
            "dpo": {"trainer": {"warmup_steps": -1}},
        }
    )
    with pytest.raises(RecipeError, match=r"dpo\.trainer: DPOConfig rejects it"):
        check_trainer_blocks(recipe)


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (ValueError("eos_token is not known"), RecipeError),
        (NotImplementedError("no weights with aot"), RecipeError),
        (ImportError("liger is not here"), SetupError),
    ],
)
def test_build_trainer_raises_trls_message_as_a_recipe_error(
    raised: Exception, becomes: type[PosttrainError]
) -> None:
    def refuse(**given: object) -> None:
        raise raised

    with pytest.raises(becomes) as caught:
        build_trainer(refuse, stage="dpo", model="a model")
    assert caught.value.message.startswith("dpo.trainer: ")
    assert str(raised) in caught.value.message
    assert "dpo.trainer" in caught.value.hint


def test_build_trainer_passes_type_errors_on() -> None:
    with pytest.raises(TypeError, match="unexpected keyword"):
        build_trainer(lambda model: model, stage="dpo", modell="a model")
