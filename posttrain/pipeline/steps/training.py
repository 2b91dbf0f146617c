"""The three training stages, and the pairs that the last one learns from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import HealthStop
from posttrain.pipeline.context import Counts, StageContext
from posttrain.pipeline.steps import reading
from posttrain.pipeline.steps.answering import answers_decided
from posttrain.records import PreferencePair, Prompt, RolloutGroup, Sample
from posttrain.tables import read_groups, read_records, write_json, write_records

SHOWN = (
    *("steps", "tokens", "samples", "pairs", "too_long", "groups", "rollouts"),
    *("generated_tokens", "scored_tokens"),
)


def train_sft(context: StageContext) -> Counts:
    """Fine-tune the base on what pruning kept, unscored samples included."""
    from posttrain import sft

    recipe = context.recipe
    assert recipe.sft is not None
    summary = sft.train(
        kept_samples(context),
        policy=reading.policy_before(context),
        model=recipe.model,
        trainer=recipe.sft.trainer,
        seed=context.seed,
        work_dir=context.work_dir,
        out_dir=context.out_dir,
    )
    return _finish(context, summary)


def train_rl(context: StageContext) -> Counts:
    """Online RL from the policy after SFT."""
    from posttrain import rl
    from posttrain.data import levelled_families, question_hashes
    from posttrain.engines.room import check_room
    from posttrain.models import load_tokenizer

    recipe = context.recipe
    assert recipe.rl is not None
    assert context.curriculum is not None
    prompts, policy = reading.prompts(context), reading.policy_before(context)
    check_room(
        prompts,
        load_tokenizer(policy.base),
        max_model_len=recipe.engine.max_model_len,
        systems=recipe.rl.system_prompts,
    )
    with answers_decided(context, prompts):
        summary = rl.train(
            prompts,
            policy=policy,
            model=recipe.model,
            engine=recipe.engine,
            curriculum=context.curriculum,
            trainer=recipe.rl.trainer,
            pilot_prompts=recipe.rl.pilot_prompts,
            system_prompts=recipe.rl.system_prompts,
            variants=recipe.rl.variants,
            shaping=recipe.rl.shaping,
            tags=reading.tags(context),
            families=[
                family
                for i, source in enumerate(recipe.rl.data)
                for family in levelled_families(source, f"rl.data[{i}]")
            ],
            held=frozenset(
                hashed
                for suite in reading.suites(context).values()
                for prompt in suite
                for hashed in question_hashes(prompt)
            ),
            offload_policy=recipe.rl.offload_policy,
            seed=context.seed,
            work_dir=context.work_dir,
            out_dir=context.out_dir,
        )
    return _finish(context, summary)


def mine(context: StageContext) -> Counts:
    """Pairs from the RL rollouts: same prompt, one pass and one fail."""
    from posttrain.preferences import mine_pairs

    assert context.recipe.dpo is not None
    started = time.monotonic()
    made = added_prompts(context.inputs["rl"] / "prompts")
    prompts = {prompt.prompt_id: prompt for prompt in (*reading.prompts(context), *made)}
    groups = rollout_groups(context.inputs["rl"] / "rollouts")
    pairs = mine_pairs(groups, prompts, context.recipe.dpo.pairs, seed=context.seed)
    if not pairs:
        raise HealthStop(
            f"no preference pair in {len(groups)} groups of RL rollouts: none has a passing and a "
            "failing answer of the asked-for kinds",
            hint="widen dpo.pairs (corner_cases, max_length_ratio), train RL longer, or drop dpo",
        )
    write_records(context.out_dir / "pairs.parquet", pairs, PreferencePair)
    corner_cases: dict[str, int] = {}
    for pair in pairs:
        corner_cases[pair.corner_case] = corner_cases.get(pair.corner_case, 0) + 1
    write_json(
        context.out_dir / "summary.json",
        {
            "pairs": len(pairs),
            "groups": len(groups),
            "corner_cases": corner_cases,
            "seconds": time.monotonic() - started,
        },
    )
    return {"pairs": len(pairs), "groups": len(groups)}


def train_dpo(context: StageContext) -> Counts:
    """A light DPO from the policy after RL."""
    from posttrain import dpo

    recipe = context.recipe
    assert recipe.dpo is not None
    summary = dpo.train(
        read_records(context.inputs["pairs"] / "pairs.parquet", PreferencePair),
        policy=reading.policy_before(context),
        model=recipe.model,
        trainer=recipe.dpo.trainer,
        seed=context.seed,
        work_dir=context.work_dir,
        out_dir=context.out_dir,
    )
    return _finish(context, summary)


def kept_samples(context: StageContext) -> list[Sample]:
    """What SFT learns from: without a judge everything, in the data's order."""
    from posttrain.prune import Row

    samples = reading.samples(context)
    if "prune" not in context.inputs:
        return samples
    folder = context.inputs["prune"]
    rows = [
        *read_records(folder / "kept.parquet", Row),
        *read_records(folder / "unscored.parquet", Row),
    ]
    kept = {row.sample_id for row in rows}
    return [sample for sample in samples if sample.sample_id in kept]


def rollout_groups(folder: Path) -> list[RolloutGroup]:
    """Every group of an RL run, oldest first."""
    return [group for path in sorted(folder.glob("step-*.parquet")) for group in read_groups(path)]


def added_prompts(folder: Path) -> list[Prompt]:
    """The prompts that came up during an RL run, oldest first."""
    tables = sorted(folder.glob("step-*.parquet"))
    return [prompt for table in tables for prompt in read_records(table, Prompt)]


def _finish(context: StageContext, summary: Mapping[str, Any]) -> Counts:
    if reading.is_main_process():
        write_json(context.out_dir / "summary.json", dict(summary))
    return reading.counts_of(summary, SHOWN)
