"""Safetensors checkpoints: shards, shapes and tensors, one shard open at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from posttrain.errors import EnvironmentFault

INDEX = "model.safetensors.index.json"


def shards(base: Path) -> list[str]:
    """The names of a checkpoint's files of weights."""
    index = base / INDEX
    if index.exists():
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return ["model.safetensors"]


def checkpoint_shapes(base: Path) -> dict[str, list[int]]:
    """The shape of every tensor, from the headers alone."""
    shapes: dict[str, list[int]] = {}
    for shard in shards(base):
        with _opened(base / shard) as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                shapes[name] = tensors.get_slice(name).get_shape()
    return shapes


def checkpoint_dtypes(base: Path) -> set[str]:
    """The dtypes of the tensors, from the headers alone, as safetensors names them: BF16, F32."""
    dtypes: set[str] = set()
    for shard in shards(base):
        with _opened(base / shard) as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                dtypes.add(tensors.get_slice(name).get_dtype())
    return dtypes


def checkpoint_tensors(base: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor under its own name.

    Raises EnvironmentFault that names a shard that is missing or cut short.
    """
    for shard in shards(base):
        with _opened(base / shard) as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                yield name, tensors.get_tensor(name)


@contextmanager
def _opened(shard: Path) -> Iterator[safe_open]:
    try:
        opened = safe_open(shard, framework="pt")
    except FileNotFoundError as error:
        raise EnvironmentFault(
            f"{shard} is missing, and the checkpoint's index names it",
            hint="copy the whole folder, or fetch the model again: hf download",
        ) from error
    except SafetensorError as error:
        raise EnvironmentFault(
            f"{shard} is damaged or cut short ({error})",
            hint="copy the file, or fetch the model again: hf download --force-download",
        ) from error
    with opened as tensors:
        yield tensors


def text_name(tensor_name: str) -> str:
    """A weight's name in the text model: a multimodal checkpoint's prefix left off."""
    return tensor_name.removeprefix("language_model.")


def is_text(tensor_name: str) -> bool:
    """Whether a weight belongs to the language model, not to vision or its projector."""
    return not tensor_name.startswith(("vision_model.", "multi_modal_projector."))
