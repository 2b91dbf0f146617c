"""Stage 3: a light DPO on `trl.DPOTrainer`, its reference a frozen copy of the starting policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel
from trl import DPOTrainer

from posttrain.engines.parity import save_parity
from posttrain.lengths import TOO_LONG_FILE, TooLong, leave_out_too_long
from posttrain.models import PolicyPath, load_policy, load_tokenizer
from posttrain.models.sharded import is_sharded_run, reads_weights
from posttrain.recipe.models import Model
from posttrain.recipe.trainer_blocks import DPOBlock
from posttrain.records import Message, PreferencePair
from posttrain.tables import write_records
from posttrain.training import build_trainer, run_trainer, trainer_arguments


def train(
    pairs: list[PreferencePair],
    *,
    policy: PolicyPath,
    model: Model,
    trainer: DPOBlock,
    seed: int,
    work_dir: Path,
    out_dir: Path,
) -> dict[str, Any]:
    """Learn from preference pairs and write `out_dir/policy`; resumes from `work_dir`.

    Pairs with an answer that does not fit into the trainer's max_length are left out and stand in
    `out_dir`'s too_long.parquet. Returns the stage's summary: seconds, steps, tokens, final loss,
    pairs trained on and left out.
    """
    args = trainer_arguments(trainer, stage="dpo", dtype=model.dtype, seed=seed, work_dir=work_dir)
    tokenizer = load_tokenizer(policy.base)
    pairs, too_long = leave_out_too_long(
        pairs,
        lambda pair: [[*pair.prompt, *_turn(pair.chosen)], [*pair.prompt, *_turn(pair.rejected)]],
        row_id=lambda pair: pair.prompt_id,
        tokenizer=tokenizer,
        max_length=args.max_length,
        key="dpo.trainer.max_length",
    )
    rows = [
        {"prompt": pair.prompt, "chosen": _turn(pair.chosen), "rejected": _turn(pair.rejected)}
        for pair in pairs
    ]
    policy_model = load_policy(policy, model, trainable=True)
    dpo = build_trainer(
        DPOTrainer,
        stage="dpo",
        model=policy_model,
        ref_model=_reference(policy, policy_model, model),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    check_reference(dpo)
    summary = run_trainer(dpo, stage="dpo", work_dir=work_dir, out_dir=out_dir, tokenizer=tokenizer)
    answers = [(pair.prompt, pair.chosen) for pair in pairs]
    save_parity(dpo, tokenizer, answers, out_dir / "policy")
    if dpo.is_world_process_zero():
        write_records(out_dir / TOO_LONG_FILE, too_long, TooLong)
    return summary | {"pairs": len(pairs), "too_long": len(too_long)}


def _turn(answer: str) -> list[Message]:
    return [Message(role="assistant", content=answer)]


def _reference(
    policy: PolicyPath, policy_model: PreTrainedModel | PeftModel, spec: Model
) -> PreTrainedModel | None:
    """Return a second copy of the weights; None for an adapter, which TRL copies as `ref`."""
    if isinstance(policy_model, PeftModel):
        return None
    reference = load_policy(policy, spec, trainable=False)
    assert isinstance(reference, PreTrainedModel)
    return reference


def check_reference(dpo: DPOTrainer) -> None:
    """Raise ValueError unless the reference is the policy, not the base beneath its adapter.

    To be called before the first step. Where TRL cannot copy an adapter it falls back to the base
    with adapters off, and says so only in a warning.
    """
    model = dpo.accelerator.unwrap_model(dpo.model)
    if not isinstance(model, PeftModel):
        assert dpo.ref_model is not None
        return
    if "ref" not in model.peft_config:
        raise ValueError(
            "TRL made no frozen copy of the adapter, "
            "so DPO's reference would be the bare base model"
        )
    if is_sharded_run() and not reads_weights():
        return  # the first process's adapters are handed to the others
    state = model.state_dict()
    for name, weight in state.items():
        if ".default." in name and not state[name.replace(".default.", ".ref.")].equal(weight):
            raise ValueError(f"DPO's reference differs from the policy it starts from in {name}")
