"""model: find, fetch or make the base model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.artefacts import MODEL
from posttrain.pipeline.environment import cache_dir
from posttrain.pipeline.stage import Counts, Stage, StageContext
from posttrain.recipe import LoadedRecipe
from posttrain.recipe.models import Model
from posttrain.tables import file_sha256, write_json


def run(context: StageContext, section: Model) -> Counts:
    """Find, fetch or make the base model; check the trainer blocks with TRL itself."""
    from posttrain.models import count_parameters, resolve_base
    from posttrain.training import check_trainer_blocks

    check_trainer_blocks(context.recipe)
    path = resolve_base(section, cache_dir=cache_dir())
    num_parameters = count_parameters(path)
    write_json(
        context.out_dir / MODEL,
        {
            "path": str(path),
            "revision": section.revision,
            "config_sha256": file_sha256(path / "config.json"),
            "num_parameters": num_parameters,
        },
    )
    return {"parameters": num_parameters}


def depends_on(loaded: LoadedRecipe, _section: Model) -> Mapping[str, Any]:
    """Return the base model and its precision."""
    written = loaded.written["model"]
    return {"model": {name: written[name] for name in ("base", "revision", "dtype")}}


def files(loaded: LoadedRecipe) -> Mapping[str, Path]:
    """Return the folder of a local base model."""
    return {key: path for key, path in loaded.files.items() if key.startswith("model.")}


STAGE = Stage(
    name="model",
    version=1,
    section=lambda recipe: recipe.model,
    run=run,
    depends_on=depends_on,
    files=files,
    is_seeded=False,
    loads_models=True,
)
