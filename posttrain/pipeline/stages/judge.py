"""judge: a verdict on every sample and RL prompt, and a pilot to hold the verdicts against."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from posttrain.artefacts import MODEL, PILOT, PROMPT_VERDICTS, VERDICTS
from posttrain.pipeline import keys
from posttrain.pipeline.stage import Counts, Estimate, Stage, StageContext, starting_policy
from posttrain.pipeline.stages import data
from posttrain.pipeline.verifying import verifier_files, verifiers_ready
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.schema import JudgeCheck, Recipe, Sft
from posttrain.records import Message, Prompt, RolloutGroup, Sample, Verdict, content_hash
from posttrain.run_directory import SUMMARY
from posttrain.tables import read_json, write_groups, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.engines import Engine
    from posttrain.recipe.models import EngineSpec


def run(context: StageContext, section: Sft) -> Counts:
    """Judge every sample and RL prompt; let the base model attempt the pilot's samples.

    RL prompts are judged whatever the curriculum, so that another one re-runs RL alone. A ledger
    beside the stages keeps verdicts by sample and judge: neither a killed run nor more data pays
    for one twice.
    """
    from posttrain.engines import make_engine
    from posttrain.engines.openai import OpenAIEngine
    from posttrain.judge import judge_identity, judge_samples
    from posttrain.models import load_tokenizer

    recipe, judge = context.recipe, section.judge
    assert judge is not None, "section_of asks for it"
    started = time.monotonic()
    samples = data.samples(context)
    prompts = data.prompts(context) if recipe.rl and recipe.rl.judge_prompts else []
    policy = starting_policy(context)
    tokenizer = load_tokenizer(policy.base)
    spec = section.judge_engine or recipe.engine
    base = read_json(context.inputs["model"] / MODEL)
    revision = judge_revision(spec, base, recipe.model.dtype)
    ledger = context.run_dir / "work" / "ledgers" / "judge.sqlite"
    ledger.parent.mkdir(parents=True, exist_ok=True)

    def open_engine(spec: EngineSpec) -> Engine:
        return make_engine(spec, policy, dtype=recipe.model.dtype, seed=context.seed)

    def ask(engine: Engine, samples: Sequence[Sample]) -> list[Verdict]:
        return judge_samples(
            samples,
            judge,
            engine,
            tokenizer,
            judge_id=judge_identity(judge, revision),
            ledger_path=ledger,
            max_model_len=spec.max_model_len,
        )

    with closing(open_engine(spec)) as engine:
        if isinstance(engine, OpenAIEngine):
            engine.check_tokenizer(tokenizer)
        verdicts = ask(engine, samples)
        VERDICTS.write(context.out_dir, verdicts)
        began = time.monotonic()
        tags = ask(engine, [answered(prompt) for prompt in prompts])
        tags = [
            dataclasses.replace(tag, sample_id=prompt.prompt_id)
            for tag, prompt in zip(tags, prompts, strict=True)
        ]
        PROMPT_VERDICTS.write(context.out_dir, tags)
        prompt_seconds = time.monotonic() - began
        if section.judge_engine is None:
            attempts = _attempts(context, section.pilot, samples, engine, tokenizer)
    if section.judge_engine is not None:
        with closing(open_engine(recipe.engine)) as engine:
            attempts = _attempts(context, section.pilot, samples, engine, tokenizer)
    num_scored = sum(verdict.score is not None for verdict in verdicts)
    counts = {
        "judged": len(verdicts),
        "scored": num_scored,
        "unscored": len(samples) - num_scored,
        "pilot": len(attempts),
        "prompts": len(prompts),
        "scored_prompts": sum(tag.score is not None for tag in tags),
    }
    seconds = time.monotonic() - started
    tokens = sum(len(r.completion_ids) for group in attempts for r in group.rollouts)
    write_json(
        context.out_dir / SUMMARY,
        {**counts, "seconds": seconds, "prompt_seconds": prompt_seconds, "pilot_tokens": tokens},
    )
    return counts


def _attempts(
    context: StageContext,
    spec: JudgeCheck,
    samples: list[Sample],
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
) -> list[RolloutGroup]:
    """Write and return the base model's attempts at the pilot's samples."""
    from posttrain.judge import attempt_samples

    prompts = {s.sample_id: _as_prompt(s) for s in samples if s.verifier is not None}
    with verifiers_ready(context, list(prompts.values())):
        groups = attempt_samples(
            samples,
            engine,
            tokenizer,
            spec,
            max_model_len=context.recipe.engine.max_model_len,
            seed=context.seed,
        )
    piloted = {group.prompt_id: prompts[group.prompt_id] for group in groups}
    write_groups(context.out_dir / PILOT, groups, piloted)
    return groups


def depends_on(loaded: LoadedRecipe, _section: Sft) -> Mapping[str, Any]:
    """Return the judge, its engine, and how the pilot is sampled and verified."""
    written = loaded.written
    return {
        "sft": {key: written["sft"][key] for key in ("judge", "pilot")},
        "rl": {"judge_prompts": (written["rl"] or {}).get("judge_prompts", False)},
        "engine": keys.engine_values(written["engine"]),
        "judge_engine": keys.engine_values(written["sft"]["judge_engine"]),
        "model": {"dtype": written["model"]["dtype"]},
        **keys.answer_judge_values(loaded),
        **keys.sandbox_limits(loaded),
        **keys.function_limits(loaded, "sft"),
    }


def estimate(recipe: Recipe, _section: Sft, rows: Mapping[str, int | None]) -> Estimate:
    """Estimate calls: one per sample, and one per prompt with rl.judge_prompts."""
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
    """Return a hash of the judging model and of this stage's version, which its verdicts depend on.

    Of the engine its weights and length limit count, besides them the base.
    """
    served = [engine.kind, engine.base_url, engine.model, engine.max_model_len]
    weights = [engine.checkpoint, engine.quantization]
    base = [model["config_sha256"], model["revision"], model["path"], dtype]
    return content_hash(STAGE.version, served, weights, base)


def answered(prompt: Prompt) -> Sample:
    """Return an RL prompt as a sample, its reference as the answer, for the judge."""
    turn = Message(role="assistant", content=prompt.reference)
    return Sample.make(messages=[*prompt.messages, turn], capability=prompt.capability)


def _as_prompt(sample: Sample) -> Prompt:
    from posttrain.data import prompt_of

    prompt = prompt_of(sample)
    assert prompt is not None, "the pilot takes only samples with a verifier"
    return prompt


STAGE = Stage(
    name="judge",
    version=2,
    section=section_of,
    run=run,
    reads=("model", "data"),
    depends_on=depends_on,
    files=verifier_files("sft"),
    estimate=estimate,
    loads_models=True,
)
