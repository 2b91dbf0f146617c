"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import RunServer, make_tiny_run

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


@pytest.fixture(scope="session")
def run_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunServer]:
    """A process that runs recipes, with everything imported."""
    server = RunServer(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def tiny_run(run_server: RunServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and its finished run in `run`; do not write into it."""
    return make_tiny_run(run_server, tmp_path_factory.mktemp("tiny"))
