"""Stage 1: supervised fine-tuning on `trl.SFTTrainer`, the loss on the answers only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from posttrain.engines.parity import save_parity
from posttrain.lengths import TOO_LONG_FILE, TooLong, leave_out_too_long
from posttrain.models import PolicyPath, load_policy, load_tokenizer
from posttrain.recipe.models import Model
from posttrain.recipe.trainer_blocks import SFTBlock
from posttrain.records import Sample
from posttrain.tables import write_records
from posttrain.training import build_trainer, run_trainer, trainer_arguments


def train(
    samples: list[Sample],
    *,
    policy: PolicyPath,
    model: Model,
    trainer: SFTBlock,
    seed: int,
    work_dir: Path,
    out_dir: Path,
) -> dict[str, Any]:
    """Fine-tune `policy` on the samples' last turns and write `out_dir/policy`.

    Samples longer than the trainer's max_length are left out and stand in `out_dir`'s
    too_long.parquet. Resumes from `work_dir`. Returns the stage's summary: seconds, steps, tokens,
    final loss, samples trained on and left out.
    """
    args = trainer_arguments(trainer, stage="sft", dtype=model.dtype, seed=seed, work_dir=work_dir)
    tokenizer = load_tokenizer(policy.base)
    samples, too_long = leave_out_too_long(
        samples,
        lambda sample: [sample.messages],
        row_id=lambda sample: sample.sample_id,
        tokenizer=tokenizer,
        max_length=args.max_length if _cuts(args) else None,
        key="sft.trainer.max_length",
    )
    rows = [{"prompt": s.messages[:-1], "completion": s.messages[-1:]} for s in samples]
    set_seed(seed)  # a fresh adapter's values are drawn
    sft = build_trainer(
        SFTTrainer,
        stage="sft",
        model=load_policy(policy, model, trainable=True),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    summary = run_trainer(sft, stage="sft", work_dir=work_dir, out_dir=out_dir, tokenizer=tokenizer)
    answers = [(s.messages[:-1], s.messages[-1]["content"]) for s in samples]
    save_parity(sft, tokenizer, answers, out_dir / "policy")
    if sft.is_world_process_zero():
        write_records(out_dir / TOO_LONG_FILE, too_long, TooLong)
    return summary | {"samples": len(samples), "too_long": len(too_long)}


def _cuts(args: SFTConfig) -> bool:
    """Return whether TRL truncates rows over max_length; some packing strategies do not."""
    return not args.packing or args.packing_strategy == "bfd"
