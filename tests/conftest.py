"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.sandbox.landlock import Landlock


@pytest.fixture(scope="session")
def tiny_llama4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama 4 checkpoint with tokenizer and chat template; do not write into it."""
    from posttrain.models.tiny import write_tiny_llama4

    return write_tiny_llama4(tmp_path_factory.mktemp("models") / "tiny-llama4")


@pytest.fixture(scope="module")
def landlock() -> Iterator[Landlock]:
    """The sandbox with all protections; on Linux only."""
    made = Landlock(most=4)
    yield made
    made.close()
