"""The folder of the base model that a recipe names: local, downloaded or upcycled."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from posttrain.errors import SetupError
from posttrain.models.checkpoint import checkpoint_shapes
from posttrain.models.upcycle import upcycle
from posttrain.recipe.models import Model, UpcycledBase
from posttrain.records import content_hash

WEIGHTS_AND_TOKENIZER = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
UPCYCLING = 1
"""Version of upcycled weights in the cache: raise it when the same request gives other weights."""


def upcycled_path(spec: Model, *, cache_dir: Path) -> Path:
    """Return the path of an upcycled base in the cache, whether it exists yet or not."""
    assert isinstance(spec.base, UpcycledBase)
    request = spec.base.upcycle
    key = content_hash(UPCYCLING, request.model_dump(by_alias=True), spec.dtype)
    return cache_dir / "models" / f"{Path(request.from_).name}-{request.experts}e-{key}"


def resolve_base(spec: Model, *, cache_dir: Path) -> Path:
    """Return the folder of the base model; download or upcycle it first if need be.

    Raises SetupError if there is no such model.
    """
    if isinstance(spec.base, UpcycledBase):
        path = upcycled_path(spec, cache_dir=cache_dir)
        if not path.exists():
            building = path.with_name(f".{path.name}.{os.getpid()}")
            request = spec.base.upcycle
            upcycle(
                request.from_,
                building,
                experts=request.experts,
                every=request.every,
                dtype=spec.dtype,
            )
            _move_into_place(building, path)
        return path
    local = Path(spec.base).expanduser()
    if local.exists():
        return _mended(_checked(local), cache_dir=cache_dir)
    try:
        found = snapshot_download(
            spec.base, revision=spec.revision, allow_patterns=WEIGHTS_AND_TOKENIZER
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise SetupError(
            f"model.base: {spec.base!r} is not a local folder, and cannot be downloaded from the "
            f"Hugging Face hub: {str(error).splitlines()[0]}",
            hint="check the name and the network, run `hf auth login` for a gated model, "
            "or give a local folder",
        ) from error
    return _mended(_checked(Path(found)), cache_dir=cache_dir)


def _mended(path: Path, *, cache_dir: Path) -> Path:
    """Return the folder, or a copy of links with a configuration that transformers can read.

    Llama 4 was first published with `attn_temperature_tuning: 4`; transformers requires a bool.
    """
    config = json.loads((path / "config.json").read_text())
    text = config.get("text_config", config)
    tuning = text.get("attn_temperature_tuning")
    if tuning is None or isinstance(tuning, bool):
        return path
    text["attn_temperature_tuning"] = bool(tuning)
    key = content_hash(str(path.resolve()), config)
    mended = cache_dir / "models" / f"{path.resolve().name}-mended-{key}"
    if not mended.exists():
        building = mended.with_name(f".{mended.name}.{os.getpid()}")
        building.mkdir(parents=True)
        for file in path.iterdir():
            if file.name != "config.json":
                (building / file.name).symlink_to(file.resolve())
        (building / "config.json").write_text(json.dumps(config, indent=2))
        _move_into_place(building, mended)
    return mended


def _move_into_place(building: Path, path: Path) -> None:
    """Rename a finished folder to its name in the cache, unless another process was first."""
    try:
        building.rename(path)
    except OSError:
        if not path.exists():
            raise
        shutil.rmtree(building)


def _checked(path: Path) -> Path:
    config = path / "config.json"
    if not config.is_file():
        raise SetupError(
            f"model.base: {path} is not a model: it has no config.json",
            hint="give a folder in Hugging Face layout: config.json, *.safetensors, "
            "tokenizer files",
        )
    try:
        json.loads(config.read_text())["model_type"]
    except (json.JSONDecodeError, KeyError) as error:
        raise SetupError(
            f"model.base: {config} is not a model configuration ({type(error).__name__}: {error})",
            hint="give a folder in Hugging Face layout",
        ) from error
    if not any(path.glob("*.safetensors")):
        raise SetupError(
            f"model.base: {path} has no *.safetensors weights",
            hint="save it with save_pretrained of a recent transformers",
        )
    return path


def count_parameters(path: Path) -> int:
    """Return the number of weights in a checkpoint, read from its headers alone."""
    return sum(math.prod(shape) for shape in checkpoint_shapes(path).values())
