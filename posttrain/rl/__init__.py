"""Stage 2: online RL on `trl.GRPOTrainer`, prompts from a curriculum, rollouts from an engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import set_seed

from posttrain.engines import SamplingRequest, make_engine
from posttrain.engines.engine import Sleeps
from posttrain.engines.parity import save_expected
from posttrain.models import load_policy, load_tokenizer
from posttrain.recipe.models import EngineSpec, Model
from posttrain.recipe.schema import Rl
from posttrain.rl.session import RlInputs, RolloutSession
from posttrain.rl.step_tables import FATES, PURPOSES, TABLES, curriculum_flow, flow_totals
from posttrain.rl.trainer import CurriculumGRPOTrainer
from posttrain.rl.variants import false_positives
from posttrain.tables import read_table, write_table
from posttrain.training import build_trainer, newest_checkpoint, run_trainer, trainer_arguments

__all__ = ["RlInputs", "train"]


def train(
    rl: Rl,
    inputs: RlInputs,
    *,
    model: Model,
    engine: EngineSpec,
    seed: int,
    work_dir: Path,
    out_dir: Path,
) -> dict[str, Any]:
    """Train a policy on verified rollouts; resume from `work_dir`.

    Writes policy/, metrics.jsonl, curriculum.jsonl, curriculum.zip, parity.jsonl, rollouts/,
    probes/, prompts/ and variants/ to `out_dir`. Returns the stage's summary.
    """
    policy = inputs.policy
    args = trainer_arguments(
        rl.trainer, stage="rl", dtype=model.dtype, seed=seed, work_dir=work_dir
    )
    tokenizer = load_tokenizer(policy.base)
    rank = model.lora.rank if model.lora is not None else None
    running = make_engine(engine, policy, dtype=model.dtype, seed=seed, lora_rank=rank)
    if isinstance(running, Sleeps):
        running.sleep()
    session = RolloutSession(
        rl,
        inputs,
        engine=running,
        engine_spec=engine,
        tokenizer=tokenizer,
        request=SamplingRequest(
            num_generations=args.num_generations,
            max_tokens=args.max_completion_length,
            temperature=args.temperature,
            top_p=args.top_p,
            seed=seed,
        ),
        num_groups=args.generation_batch_size // args.num_generations,
        work_dir=work_dir,
    )
    checkpoint = newest_checkpoint(work_dir)
    if checkpoint is None:
        session.rewind(0)
    else:
        session.restore(checkpoint, step=int(checkpoint.name.rsplit("-", 1)[1]))
    set_seed(seed)  # a fresh adapter's values are drawn
    grpo = build_trainer(
        CurriculumGRPOTrainer,
        stage="rl",
        model=load_policy(policy, model, trainable=True),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": p.messages} for p in inputs.prompts]),
        processing_class=tokenizer,
        source=session,
    )
    summary = run_trainer(grpo, stage="rl", work_dir=work_dir, out_dir=out_dir, tokenizer=tokenizer)
    # In every process, as the model may be sharded over them.
    expected = session.expected_logprobs(grpo)
    if not grpo.is_world_process_zero():
        return summary
    session.save(str(out_dir))
    save_expected(expected, out_dir / "policy")
    if (work_dir / "parity.jsonl").exists():
        shutil.copy2(work_dir / "parity.jsonl", out_dir / "parity.jsonl")
    for name in TABLES:
        if (work_dir / name).exists():
            shutil.copytree(work_dir / name, out_dir / name)
    return summary | _summary(inputs, session, out_dir)


def _summary(inputs: RlInputs, session: RolloutSession, out_dir: Path) -> dict[str, Any]:
    """Write curriculum.jsonl; return what the tables say of prompts, tokens and variants."""
    flow = curriculum_flow(out_dir)
    write_table(out_dir / "curriculum.jsonl", flow)
    totals = flow_totals(flow)
    tried = [row for table in sorted((out_dir / "variants").glob("*")) for row in read_table(table)]
    num_checked, num_wrong = false_positives(tried)
    return {
        "prompts": len(inputs.prompts),
        "generated_tokens": totals["tokens"],
        "scored_tokens": totals["scored"],
        "variant_tokens": totals["variants"],
        "variants": {
            "tried": len(tried),
            "accepted": sum(row["why"] == "accepted" for row in tried),
            "accepted_with_known_truth": num_checked,
            "of_these_wrong": num_wrong,
        },
        "tokens_by_purpose": {name: totals[f"tokens_{name}"] for name in PURPOSES},
        "tokens_by_fate": {name: totals[f"tokens_{name}"] for name in FATES},
        # Mean predicted pass rate, observed one, rollouts; by tenths of the predicted.
        "reliability": session.curriculum.reliability(),
    }
