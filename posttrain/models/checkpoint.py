"""Safetensors checkpoints: names, shapes and tensors, with one shard open at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from posttrain.errors import SetupError

INDEX = "model.safetensors.index.json"


def checkpoint_shapes(base: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor, read from the headers alone."""
    return {name: tensors.get_slice(name).get_shape() for tensors, name in _tensors(base)}


def checkpoint_dtypes(base: Path) -> set[str]:
    """Return the dtypes of the tensors as safetensors names them (BF16, F32), from the headers."""
    return {tensors.get_slice(name).get_dtype() for tensors, name in _tensors(base)}


def checkpoint_tensors(base: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor with its name.

    Raises SetupError that names a shard which is missing or cut short.
    """
    for tensors, name in _tensors(base):
        yield name, tensors.get_tensor(name)


def _tensors(base: Path) -> Iterator[tuple[safe_open, str]]:
    for shard in _shards(base):
        with _opened(base / shard) as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                yield tensors, name


def _shards(base: Path) -> list[str]:
    index = base / INDEX
    if index.exists():
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return ["model.safetensors"]


@contextmanager
def _opened(shard: Path) -> Iterator[safe_open]:
    try:
        opened = safe_open(shard, framework="pt")
    except FileNotFoundError as error:
        raise SetupError(
            f"{shard} is missing, although the checkpoint's index names it",
            hint="copy the whole folder, or download the model again: hf download",
        ) from error
    except SafetensorError as error:
        raise SetupError(
            f"{shard} is damaged or cut short ({error})",
            hint="copy the file again, or download the model again: hf download --force-download",
        ) from error
    with opened as tensors:
        yield tensors


def text_name(tensor_name: str) -> str:
    """Return a weight's name in the text model, without a multimodal checkpoint's prefix."""
    return tensor_name.removeprefix("language_model.")


def is_text(tensor_name: str) -> bool:
    """Return True for weights of the language model, False for vision and its projector."""
    return not tensor_name.startswith(("vision_model.", "multi_modal_projector."))
