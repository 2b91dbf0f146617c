"""Code shared by the training stages: TRL's arguments, verified checkpoints, metrics, health."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeVar

import torch
import trl
from accelerate import PartialState
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from trl import DPOTrainer, SFTTrainer

from posttrain.errors import HealthStop, RecipeError, SetupError
from posttrain.kill_points import kill_point
from posttrain.models import save_policy
from posttrain.models.experts import moe_layers
from posttrain.models.moe_monitor import MoeMonitor, gradient_norms
from posttrain.models.sharded import configure_sharding, patch_accelerate_for_cpu
from posttrain.models.trl_shim import score_only_labels_on_cpu
from posttrain.progress import Bar, note, progress
from posttrain.recipe.schema import Recipe
from posttrain.recipe.trainer import TrainerBlock
from posttrain.tables import MetricsLog, file_sha256, read_json, write_json

MARKER = "COMPLETE.json"
"""File with the hashes of a checkpoint's files, written last; without it none is resumed."""
SPENT = "spent.json"
"""File with a checkpoint's seconds of training, over all attempts."""
TOKENS = "_total_train_tokens"
"""TRL's token count in SFT and DPO, which it resets to 0 on resuming."""
REFERENCE = "ref"
"""TRL's name for the frozen copy of an adapter."""
Built = TypeVar("Built")


def trainer_arguments(
    block: TrainerBlock, *, stage: str, dtype: str, seed: int, work_dir: Path
) -> Any:
    """Build TRL's config from the recipe's `trainer` block, our defaults and fixed settings.

    Raises RecipeError if TRL rejects the values.
    """
    config_class = getattr(trl, block.config_class)
    on_cpu = not torch.cuda.is_available()
    own = {
        "output_dir": str(work_dir / "checkpoints"),
        "seed": seed,
        "bf16": dtype == "bfloat16",
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "disable_tqdm": True,
        # True would hide a NaN loss from RunCallback, which stops on one.
        "logging_nan_inf_filter": False,
    }
    try:
        arguments = config_class(**{**block.arguments(), **own})
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"{stage}.trainer: {block.config_class} rejects it: {error}",
            hint="see `posttrain check` and TRL's documentation of " + block.config_class,
        ) from error
    patch_accelerate_for_cpu()
    return arguments


def check_trainer_blocks(recipe: Recipe) -> None:
    """Build every stage's TRL config, so that the last stage's fails before the first stage runs.

    Raises RecipeError if TRL rejects one.
    """
    for stage, section in recipe.training.items():
        with TemporaryDirectory() as folder:
            trainer_arguments(
                section.trainer,
                stage=stage,
                dtype=recipe.model.dtype,
                seed=recipe.seed,
                work_dir=Path(folder),
            )


def build_trainer(make: Callable[..., Built], *, stage: str, **given: Any) -> Built:
    """Build TRL's trainer; raise RecipeError or SetupError with TRL's message if it rejects it.

    This catches what only the model and the data show, after check and preflight. A TypeError is
    passed on as a bug: posttrain chose the arguments.
    """
    score_only_labels_on_cpu()
    try:
        return make(**given)
    except ImportError as error:
        raise SetupError(
            f"{stage}.trainer: {error}",
            hint=f"install what is missing, or remove the key of {stage}.trainer that needs it",
        ) from error
    except (ValueError, NotImplementedError) as error:
        raise RecipeError(
            f"{stage}.trainer: TRL rejects it: {error}",
            hint=f"change that in {stage}.trainer, then run the same command again",
        ) from error


def newest_checkpoint(work_dir: Path) -> Path | None:
    """Return the newest checkpoint whose files match its marker; move damaged ones aside."""
    state = PartialState()
    found = _newest_complete(work_dir) if state.is_main_process else None
    state.wait_for_everyone()
    return found if state.is_main_process else _newest_complete(work_dir)


def _newest_complete(work_dir: Path) -> Path | None:
    folders = sorted(
        (work_dir / "checkpoints").glob("checkpoint-*"),
        key=lambda p: int(p.name.rsplit("-", 1)[1]),
        reverse=True,
    )
    for folder in folders:
        if _is_complete(folder):
            return folder
        aside = work_dir / "incomplete"
        aside.mkdir(exist_ok=True)
        folder.rename(aside / f"{folder.name}-{time.time_ns()}")
        note(
            f"{folder.name} is incomplete or damaged: moved to {aside}; "
            "resuming from an older checkpoint, if there is one"
        )
    return None


def _is_complete(folder: Path) -> bool:
    marker = folder / MARKER
    if not marker.exists():
        return False
    files: dict[str, str] = read_json(marker)
    return all(
        (folder / name).exists() and file_sha256(folder / name) == digest
        for name, digest in files.items()
    )


class RunCallback(TrainerCallback):
    """Progress, metrics.jsonl, checkpoint markers, kill points, and a stop on non-finite loss.

    For a mixture of experts the metrics include expert load and gradient norms by kind of weight.
    """

    def __init__(self, stage: str, metrics: MetricsLog, *, seconds_before: float = 0.0) -> None:
        self._stage = stage
        self._metrics = metrics
        self._seconds_before = seconds_before
        self._started = time.monotonic()
        self._stack = ExitStack()
        self._bar: Bar | None = None
        self._moe: MoeMonitor | None = None
        self._gradient_norms: dict[str, float] = {}
        self.last_logs: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Return the seconds of training so far, those before the resumed checkpoint included."""
        return self._seconds_before + time.monotonic() - self._started

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the progress bar and remove metrics after the resumed checkpoint.

        Raises AlreadyTrained if no steps are left.
        """
        if state.is_world_process_zero:
            self._metrics.rewind(state.global_step)
        if state.global_step >= state.max_steps:
            raise AlreadyTrained
        if moe_layers(kwargs["model"]):
            self._moe = MoeMonitor(kwargs["model"])
            self._stack.callback(self._moe.close)
        self._bar = self._stack.enter_context(progress(self._stage, total=state.max_steps))
        if state.global_step:
            self._bar.advance(state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record gradient norms by kind of weight, after clipping."""
        if self._moe is not None:
            self._gradient_norms = gradient_norms(kwargs["model"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the step; log it if a checkpoint or the end of training follows.

        Logging comes before saving, and the logged loss covers all steps since the last log: if one
        of them was not finite, no checkpoint is written.
        """
        assert self._bar is not None
        if control.should_save or control.should_training_stop:
            control.should_log = True
        shown = {
            k: round(v, 4)
            for k, v in self.last_logs.items()
            if k in ("loss", "reward", "rewards/accuracies")
        }
        self._bar.advance(1, **shown)
        kill_point(f"{self._stage}.after_step")

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log the step if a checkpoint follows."""
        if control.should_save:
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append the logs to metrics.jsonl; raise HealthStop on a loss or gradient not finite."""
        numbers = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, int | float)}
        if self._moe is not None:
            numbers |= self._moe.take() | self._gradient_norms
            self._gradient_norms = {}
        if state.is_world_process_zero:
            named = {
                k if k.startswith("curriculum/") else f"{self._stage}/{k}": v
                for k, v in numbers.items()
            }
            self._metrics.append(state.global_step, named)
        self.last_logs = numbers
        for name in ("loss", "grad_norm"):
            if name in numbers and not math.isfinite(numbers[name]):
                raise HealthStop(
                    f"{self._stage}: {name} is {numbers[name]} at step {state.global_step}",
                    hint=f"lower {self._stage}.trainer.learning_rate, "
                    "then run the same command again",
                )

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Mark the checkpoint as complete, once every process has written its part."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            kill_point(f"{self._stage}.before_marker")
            assert args.output_dir is not None
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            # From a checkpoint with an adapter in a subfolder, transformers would resume that one
            # and not the trained one. The stage makes the reference again from its first policy.
            shutil.rmtree(folder / REFERENCE, ignore_errors=True)
            write_json(folder / SPENT, {"seconds": self.seconds})
            files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MARKER)
            write_json(folder / MARKER, {str(p.relative_to(folder)): file_sha256(p) for p in files})
        kill_point(f"{self._stage}.after_checkpoint")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: Any) -> None:
        """Close the progress bar, which shows if training finished."""
        self._stack.__exit__(*raised)


class AlreadyTrained(Exception):
    """Training was resumed from its last checkpoint.

    transformers, which has loaded weights and state by then, would train one step more.
    """


def run_trainer(
    trainer: Trainer, *, stage: str, work_dir: Path, out_dir: Path, tokenizer: Any
) -> dict[str, Any]:
    """Train from the newest complete checkpoint; write `out_dir/policy` and metrics.

    Returns the stage's summary; its seconds and tokens include those of earlier attempts.
    """
    checkpoint = newest_checkpoint(work_dir)
    metrics = work_dir / "metrics.jsonl"
    # It would print every row of metrics.jsonl.
    trainer.remove_callback(PrinterCallback)
    seconds_before = read_json(checkpoint / SPENT)["seconds"] if checkpoint else 0.0
    callback = RunCallback(stage, MetricsLog(metrics), seconds_before=seconds_before)
    trainer.add_callback(callback)
    if trainer.is_fsdp_enabled:
        configure_sharding(trainer.accelerator)
    if checkpoint and isinstance(trainer, SFTTrainer | DPOTrainer):
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        setattr(trainer, TOKENS, _num_tokens(state) or 0)
    with suppress(AlreadyTrained), callback:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model = trainer.accelerator.unwrap_model(trainer.model)
    assert isinstance(model, PreTrainedModel | PeftModel)
    save_policy(model, out_dir / "policy")
    if trainer.is_world_process_zero():
        if not isinstance(model, PeftModel):
            tokenizer.save_pretrained(out_dir / "policy")
        shutil.copy2(metrics, out_dir / metrics.name)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    kill_point(f"{stage}.after_save")
    return {
        "seconds": callback.seconds,
        "steps": trainer.state.global_step,
        "resumed_from_step": int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0,
        "tokens": _num_tokens(trainer.state),
        "final_loss": losses[-1] if losses else None,
    }


def _num_tokens(state: TrainerState) -> int | None:
    """Return the tokens counted up to the last logged step."""
    counted = [row["num_tokens"] for row in state.log_history if "num_tokens" in row]
    return int(counted[-1]) if counted else None
