"""From what a recipe calls its base model to a folder with weights."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from posttrain.errors import EnvironmentFault
from posttrain.models.checkpoint import checkpoint_shapes
from posttrain.models.upcycle import upcycle
from posttrain.recipe.models import Model, UpcycledBase
from posttrain.records import content_hash

WEIGHTS_AND_TOKENIZER = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
UPCYCLING = 1
"""Raised when the same request gives other weights, so that old cache entries are left alone."""


def upcycled_path(spec: Model, *, cache_dir: Path) -> Path:
    """Where the cache keeps, or will keep, an upcycled base."""
    assert isinstance(spec.base, UpcycledBase)
    request = spec.base.upcycle
    key = content_hash(UPCYCLING, request.model_dump(by_alias=True), spec.dtype)
    return cache_dir / "models" / f"{Path(request.from_).name}-{request.experts}e-{key}"


def resolve_base(spec: Model, *, cache_dir: Path) -> Path:
    """The folder of the base model.

    A local path is taken as it is, a hub name downloaded, an upcycled model built once. Raises
    EnvironmentFault where there is no such model.
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
        raise EnvironmentFault(
            f"model.base: {spec.base!r} is neither a folder here nor a model the hub gave: "
            f"{str(error).splitlines()[0]}",
            hint="check the name and the network, `hf auth login` for a gated model, "
            "or give a local folder",
        ) from error
    return _mended(_checked(Path(found)), cache_dir=cache_dir)


def _mended(path: Path, *, cache_dir: Path) -> Path:
    """The folder itself, or one with the same files and a configuration that transformers reads.

    Llama 4 as first published has `attn_temperature_tuning: 4`, and transformers wants a bool.
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
    """Publish a finished folder by one rename; another process may have been first."""
    try:
        building.rename(path)
    except OSError:
        if not path.exists():
            raise
        shutil.rmtree(building)


def _checked(path: Path) -> Path:
    config = path / "config.json"
    if not config.is_file():
        raise EnvironmentFault(
            f"model.base: {path} is no model: it has no config.json",
            hint="give a folder in Hugging Face layout: config.json, *.safetensors, "
            "tokenizer files",
        )
    try:
        json.loads(config.read_text())["model_type"]
    except (json.JSONDecodeError, KeyError) as error:
        raise EnvironmentFault(
            f"model.base: {config} is no model configuration ({type(error).__name__}: {error})",
            hint="give a folder in Hugging Face layout",
        ) from error
    if not any(path.glob("*.safetensors")):
        raise EnvironmentFault(
            f"model.base: {path} has no *.safetensors weights",
            hint="save it with save_pretrained of a recent transformers",
        )
    return path


def count_parameters(path: Path) -> int:
    """The number of weights in a checkpoint, from its headers alone."""
    total = 0
    for shape in checkpoint_shapes(path).values():
        size = 1
        for n in shape:
            size *= n
        total += size
    return total
