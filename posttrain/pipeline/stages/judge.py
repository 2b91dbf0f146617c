"""judge: a verdict on every sample and RL prompt, and a pilot to hold the verdicts against."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

from posttrain.artefacts import MODEL, PILOT, PROMPT_VERDICTS, VERDICTS
from posttrain.pipeline import keys
from posttrain.pipeline.answering import answer_judge_files, answers_decided
from posttrain.pipeline.context import Counts, Estimate, Stage, StageContext, starting_policy
from posttrain.pipeline.stages import data
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.schema import Recipe, Sft
from posttrain.records import Message, Prompt, RolloutGroup, Sample, content_hash
from posttrain.run_directory import SUMMARY
from posttrain.tables import read_json, write_groups, write_json

if TYPE_CHECKING:
    from posttrain.engines import Engine
    from posttrain.recipe.models import EngineSpec


def run(context: StageContext, section: Sft) -> Counts:
    """A verdict per sample and per RL prompt; on a pilot, how often the model really fails.

    The prompts are judged whatever the curriculum, so that another one re-runs RL alone. Verdicts
    live in a ledger beside the stages, by sample and judge, so that neither a killed run
    nor a longer data set pays for one twice.
    """
    from posttrain.engines import make_engine
    from posttrain.engines.openai import OpenAIEngine
    from posttrain.judge import attempt_samples, judge_identity, judge_samples
    from posttrain.models import load_tokenizer

    recipe = context.recipe
    assert context.judge is not None
    spec = section.pilot
    samples = data.samples(context)
    policy = starting_policy(context)
    tokenizer = load_tokenizer(policy.base)
    judge_engine = section.judge_engine or recipe.engine
    base = read_json(context.inputs["model"] / MODEL)
    revision = judge_revision(judge_engine, base, recipe.model.dtype)

    def pilot(engine: Engine, max_model_len: int) -> list[RolloutGroup]:
        tasks = [_as_prompt(sample) for sample in samples if sample.verifier is not None]
        with answers_decided(context, tasks):
            return attempt_samples(
                samples, engine, tokenizer, spec, max_model_len=max_model_len, seed=context.seed
            )

    started = time.monotonic()
    ledger = context.run_dir / "work" / "ledgers" / "judge.sqlite"
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with closing(
        make_engine(judge_engine, policy, dtype=recipe.model.dtype, seed=context.seed)
    ) as engine:
        if isinstance(engine, OpenAIEngine):
            engine.check_tokenizer(tokenizer)
        verdicts = judge_samples(
            samples,
            context.judge,
            engine,
            tokenizer,
            judge_id=judge_identity(context.judge, revision),
            ledger_path=ledger,
            max_model_len=judge_engine.max_model_len,
        )
        VERDICTS.write(context.out_dir, verdicts)
        judged = time.monotonic()
        prompts = data.prompts(context) if recipe.rl and recipe.rl.judge_prompts else []
        on_prompts = judge_samples(
            [answered(prompt) for prompt in prompts],
            context.judge,
            engine,
            tokenizer,
            judge_id=judge_identity(context.judge, revision),
            ledger_path=ledger,
            max_model_len=judge_engine.max_model_len,
        )
        PROMPT_VERDICTS.write(
            context.out_dir,
            [
                dataclasses.replace(verdict, sample_id=prompt.prompt_id)
                for prompt, verdict in zip(prompts, on_prompts, strict=True)
            ],
        )
        prompt_seconds = time.monotonic() - judged
        shared = section.judge_engine is None
        groups = pilot(engine, judge_engine.max_model_len) if shared else None
    if groups is None:
        with closing(
            make_engine(recipe.engine, policy, dtype=recipe.model.dtype, seed=context.seed)
        ) as engine:
            groups = pilot(engine, recipe.engine.max_model_len)
    piloted = {group.prompt_id for group in groups}
    by_id = {s.sample_id: _as_prompt(s) for s in samples if s.sample_id in piloted}
    write_groups(context.out_dir / PILOT, groups, by_id)
    num_scored = sum(verdict.score is not None for verdict in verdicts)
    counts = {
        "judged": len(verdicts),
        "scored": num_scored,
        "unscored": len(samples) - num_scored,
        "pilot": len(groups),
        "prompts": len(prompts),
        "scored_prompts": sum(verdict.score is not None for verdict in on_prompts),
    }
    seconds = time.monotonic() - started
    tokens = sum(len(r.completion_ids) for group in groups for r in group.rollouts)
    write_json(
        context.out_dir / SUMMARY,
        {**counts, "seconds": seconds, "prompt_seconds": prompt_seconds, "pilot_tokens": tokens},
    )
    return counts


def depends_on(loaded: LoadedRecipe, _section: Sft) -> Mapping[str, Any]:
    """Who judges, how the pilot is sampled and decided."""
    written = loaded.written
    return {
        "sft": {"judge": keys.values(loaded.judge), "pilot": written["sft"]["pilot"]},
        "rl": {"judge_prompts": (written["rl"] or {}).get("judge_prompts", False)},
        "engine": keys.engine_values(written["engine"]),
        "judge_engine": keys.engine_values(written["sft"]["judge_engine"]),
        "model": {"dtype": written["model"]["dtype"]},
        **keys.answer_judge_values(loaded),
        **keys.sandbox_limits(loaded),
    }


def estimate(recipe: Recipe, _section: Sft, rows: Mapping[str, int | None]) -> Estimate:
    """Calls: samples, and prompts where they are judged too."""
    asked = [rows["sft"]]
    if recipe.rl is not None and recipe.rl.judge_prompts:
        asked.append(rows["rl"])
    known = [num for num in asked if num is not None]
    return Estimate(judge_calls=sum(known) if len(known) == len(asked) else None)


def section_of(recipe: Recipe) -> Sft | None:
    """Return the sft section where it names a judge."""
    return recipe.sft if recipe.sft is not None and recipe.sft.judge is not None else None


def tags(context: StageContext) -> dict[str, float]:
    """Return the difficulty of RL prompts by prompt_id, in [0, 1]; unscored ones are left out."""
    if "judge" not in context.inputs:
        return {}
    verdicts = PROMPT_VERDICTS.read(context.inputs["judge"])
    return {verdict.sample_id: verdict.score for verdict in verdicts if verdict.score is not None}


def judge_revision(engine: EngineSpec, model: Mapping[str, Any], dtype: str) -> str:
    """Hash of whose verdicts these are: the engine's weights and reach, and model.json's base."""
    served = [engine.kind, engine.base_url, engine.model, engine.max_model_len]
    weights = [engine.checkpoint, engine.quantization]
    base = [model["config_sha256"], model["revision"], model["path"], dtype]
    return content_hash(served, weights, base)


def answered(prompt: Prompt) -> Sample:
    """What a judge is shown of an RL prompt: the question and its reference for an answer."""
    turn = Message(role="assistant", content=prompt.reference)
    return Sample.make(messages=[*prompt.messages, turn], capability=prompt.capability)


def _as_prompt(sample: Sample) -> Prompt:
    from posttrain.data import prompt_of

    prompt = prompt_of(sample)
    assert prompt is not None, "the pilot takes only samples with a verifier"
    return prompt


STAGE = Stage(
    name="judge",
    version=1,
    section=section_of,
    run=run,
    reads=("model", "data"),
    depends_on=depends_on,
    files=answer_judge_files,
    estimate=estimate,
)
