"""The model behind `verifier: judge`, running while a stage needs it."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.artefacts import ANSWER_JUDGE, SANDBOX, read_base_path
from posttrain.pipeline.context import StageContext, is_main_process
from posttrain.pipeline.environment import cache_dir
from posttrain.progress import note
from posttrain.recipe import LoadedRecipe
from posttrain.records import Prompt
from posttrain.tables import write_json

if TYPE_CHECKING:
    from posttrain.judge import AnswerVerifier


def answer_judge_files(loaded: LoadedRecipe) -> Mapping[str, Path]:
    """Return the judge's model folder and its calibration answers."""
    keys = ("answer_judge.model", "answer_judge.calibration")
    return {key: path for key, path in loaded.files.items() if key in keys}


@contextmanager
def answers_decided(context: StageContext, prompts: Sequence[Prompt]) -> Generator[None]:
    """Inside, every prompt can be decided: the judge runs if one needs it, workers end afterwards.

    Writes answer_judge.json, the threshold and what it was found from, and sandbox.json, where
    programs ran, to the stage's directory.
    """
    from posttrain import sandbox
    from posttrain.rewards import close_workers, use_judge

    try:
        if any(prompt.verifier == "code" for prompt in prompts):
            chosen = sandbox.current()
            if is_main_process():
                told = {"sandbox": chosen.kind, "fingerprint": chosen.fingerprint}
                write_json(context.out_dir / SANDBOX, told)
        if not any(prompt.verifier == "judge" for prompt in prompts):
            yield
            return
        with _judge(context) as judge, use_judge(judge):
            yield
    finally:
        close_workers()


@contextmanager
def _judge(context: StageContext) -> Generator[AnswerVerifier]:
    from posttrain.engines import make_engine
    from posttrain.engines.openai import OpenAIEngine
    from posttrain.judge import AnswerVerifier, read_labelled
    from posttrain.models import PolicyPath, load_tokenizer, resolve_base
    from posttrain.recipe.models import Model

    spec, rubric = context.recipe.answer_judge, context.rubric
    assert spec is not None
    assert rubric is not None
    base = read_base_path(context.inputs["model"])
    if spec.model is not None:
        base = resolve_base(Model(base=spec.model, revision=spec.revision), cache_dir=cache_dir())
    tokenizer = load_tokenizer(base)
    engine = make_engine(
        spec.engine, PolicyPath(base=base), dtype=context.recipe.model.dtype, seed=context.seed
    )
    with closing(engine):
        if isinstance(engine, OpenAIEngine):
            engine.check_tokenizer(tokenizer)
        judge = AnswerVerifier(
            rubric,
            engine,
            tokenizer,
            max_model_len=spec.engine.max_model_len,
            threshold=spec.threshold,
        )
        told = {"threshold": spec.threshold}
        if spec.calibration is not None:
            found = judge.calibrate(read_labelled(Path(spec.calibration)), seed=context.seed)
            told = {**found.as_json(), "threshold": judge.threshold}
            note(f"answer judge: passes from {judge.threshold:.2f}, AUC {found.auc:.2f}")
        if is_main_process():
            write_json(context.out_dir / ANSWER_JUDGE, told)
        yield judge
