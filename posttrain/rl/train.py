"""Put the RL stage together: data, engine, curriculum, trainer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import set_seed
from trl import GRPOConfig

from posttrain.curriculum import CurriculumSpec, build_curriculum
from posttrain.data import LevelledFamily
from posttrain.engines import SamplingRequest, make_engine
from posttrain.engines.engine import Sleeps
from posttrain.engines.parity import save_expected
from posttrain.errors import RecipeError
from posttrain.models import PolicyPath, load_policy, load_tokenizer
from posttrain.recipe.models import EngineSpec, Model
from posttrain.recipe.schema import Variants
from posttrain.records import Prompt
from posttrain.rewards.shaping import Shaping
from posttrain.rl.accounting import FATES, PURPOSES
from posttrain.rl.flow import curriculum_flow, flow_totals
from posttrain.rl.levels import LevelledPrompts
from posttrain.rl.places import engine_place
from posttrain.rl.session import RolloutSession
from posttrain.rl.step_tables import TABLES
from posttrain.rl.trainer import CurriculumGRPOTrainer
from posttrain.rl.variants import false_positives
from posttrain.tables import read_table, write_table
from posttrain.training import build_trainer, newest_checkpoint, run_trainer, trainer_arguments


def train(
    prompts: list[Prompt],
    *,
    policy: PolicyPath,
    model: Model,
    engine: EngineSpec,
    curriculum: CurriculumSpec,
    trainer: dict[str, Any],
    pilot_prompts: int = 0,
    system_prompts: Sequence[str | None] = (),
    variants: Variants | None = None,
    shaping: Shaping | None = None,
    offload_policy: bool = False,
    seed: int,
    work_dir: Path,
    out_dir: Path,
    tags: Mapping[str, float] | None = None,
    families: Sequence[LevelledFamily] = (),
    held: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Train `policy` on verified rollouts of `prompts`; resumes from `work_dir`.

    Writes policy/, metrics.jsonl, curriculum.jsonl, curriculum.zip, parity.jsonl, rollouts/,
    probes/ and prompts/ to `out_dir`. `tags` maps prompt ids to how hard a judge finds them;
    `pilot_prompts` are rolled out at the first step at least; `system_prompts` are the instructions
    one of which every group gets; with `variants` the policy writes prompts, `families` make more
    as the run goes, neither of the questions whose hashes are `held`. Returns the stage's summary.
    """
    # Rows reach TRL with columns of their own, which it must not drop.
    args = trainer_arguments(
        GRPOConfig, trainer, stage="rl", dtype=model.dtype, seed=seed, work_dir=work_dir
    )
    tokenizer = load_tokenizer(policy.base)
    if offload_policy and args.world_size > 1:
        raise RecipeError(
            f"rl.offload_policy moves one process's policy, and there are {args.world_size}",
            hint="set launch.num_processes: 1, or launch.strategy: fsdp without offload_policy",
        )
    engine_place(  # so that what does not divide fails before the engine is started
        rank=args.process_index,
        world_size=args.world_size,
        tensor_parallel_size=engine.tensor_parallel_size,
    )
    rank = model.lora.rank if model.lora is not None else None
    running = make_engine(engine, policy, dtype=model.dtype, seed=seed, lora_rank=rank)
    if isinstance(running, Sleeps):
        running.sleep()
    chooser = build_curriculum(curriculum, prompts, seed=seed, tags=tags)
    session = RolloutSession(
        curriculum=chooser,
        spec=curriculum,
        pilot_prompts=pilot_prompts,
        systems=system_prompts,
        variants=variants,
        held=held,
        shaping=shaping,
        levels=LevelledPrompts(families, prompts, held_out=held, seed=seed),
        prompts={p.prompt_id: p for p in prompts},
        engine=running,
        tokenizer=tokenizer,
        request=SamplingRequest(
            num_generations=args.num_generations,
            max_tokens=args.max_completion_length,
            temperature=args.temperature,
            top_p=args.top_p,
            seed=seed,
        ),
        num_groups=args.generation_batch_size // args.num_generations,
        engine_spec=engine,
        base=policy.base,
        offload_policy=offload_policy,
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
        train_dataset=Dataset.from_list([{"prompt": p.messages} for p in prompts]),
        processing_class=tokenizer,
        source=session,
    )
    summary = run_trainer(grpo, stage="rl", work_dir=work_dir, out_dir=out_dir, tokenizer=tokenizer)
    # Every process, as the model may be sharded over them.
    expected = session.expected_of_prompts(grpo)
    if not grpo.is_world_process_zero():
        return summary
    session.save(str(out_dir))
    save_expected(expected, out_dir / "policy")
    if (work_dir / "parity.jsonl").exists():
        shutil.copy2(work_dir / "parity.jsonl", out_dir / "parity.jsonl")
    for name in TABLES:
        if (work_dir / name).exists():
            shutil.copytree(work_dir / name, out_dir / name)
    flow = curriculum_flow(out_dir / "rollouts", out_dir / "probes", out_dir / "variants")
    write_table(out_dir / "curriculum.jsonl", flow)
    totals = flow_totals(flow)
    tried = [row for table in sorted((out_dir / "variants").glob("*")) for row in read_table(table)]
    num_checked, num_wrong = false_positives(tried)
    return summary | {
        "prompts": len(prompts),
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
        "reliability": chooser.reliability(),
    }
