"""Provide what verifiers need during a stage: the judging model, a sandbox, worker processes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.artefacts import ANSWER_JUDGE, SANDBOX, read_base_path
from posttrain.pipeline.environment import cache_dir
from posttrain.pipeline.stage import StageContext
from posttrain.progress import is_main_process, note
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.schema import user_functions
from posttrain.records import Prompt
from posttrain.tables import write_json

if TYPE_CHECKING:
    from posttrain.judge import AnswerVerifier


def verifier_files(*sections: str) -> Callable[[LoadedRecipe], Mapping[str, Path]]:
    """Return the `files` of a stage that verifies answers to the rows of these sections.

    They are the answer judge's model folder and calibration answers, and the sources of the user's
    own functions.
    """
    judge = ("answer_judge.model", "answer_judge.calibration")

    def files(loaded: LoadedRecipe) -> Mapping[str, Path]:
        return {
            key: path
            for key, path in loaded.files.items()
            if key in judge or (key.split(".")[0] in sections and ".verifier.python" in key)
        }

    return files


@contextmanager
def verifiers_ready(context: StageContext, prompts: Sequence[Prompt]) -> Generator[None]:
    """Declare the user's own functions, run the answer judge if a prompt needs it.

    Worker processes end afterwards.

    Writes to the stage's directory: answer_judge.json (the threshold, and the calibration that
    found it) and sandbox.json (where programs ran), each if it was needed.
    """
    from posttrain import sandbox
    from posttrain.rewards import close_workers, use_functions, use_judge

    use_functions(function for _, function in user_functions(context.recipe))
    try:
        if any(prompt.verifier == "code" for prompt in prompts):
            chosen = sandbox.current()
            if is_main_process():
                values = {"sandbox": chosen.kind, "fingerprint": chosen.fingerprint}
                write_json(context.out_dir / SANDBOX, values)
        if not any(prompt.verifier == "judge" for prompt in prompts):
            yield
            return
        with _answer_judge(context) as judge, use_judge(judge):
            yield
    finally:
        close_workers()


@contextmanager
def _answer_judge(context: StageContext) -> Generator[AnswerVerifier]:
    from posttrain.engines import make_engine
    from posttrain.engines.openai import OpenAIEngine
    from posttrain.judge import AnswerVerifier, read_labelled
    from posttrain.models import PolicyPath, load_tokenizer, resolve_base
    from posttrain.recipe.models import Model

    spec = context.recipe.answer_judge
    assert spec is not None, "a recipe with verifier: judge has an answer_judge"
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
            spec.rubric,
            engine,
            tokenizer,
            max_model_len=spec.engine.max_model_len,
            threshold=spec.threshold,
        )
        values = {"threshold": spec.threshold}
        if spec.calibration is not None:
            found = judge.calibrate(read_labelled(Path(spec.calibration)), seed=context.seed)
            values = {**asdict(found), "threshold": judge.threshold}
            note(f"answer judge: passes from {judge.threshold:.2f}, AUC {found.auc:.2f}")
        if is_main_process():
            write_json(context.out_dir / ANSWER_JUDGE, values)
        yield judge
