"""Fixtures that several test files share, and what tests in several processes need."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_run import RunServer, make_tiny_run

from posttrain.sandbox.landlock import Landlock

IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if IS_WORKER:
    # A core each; nothing so far has imported torch, which reads it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED_MEMORY = Path("/dev/shm")
LONGEST = (
    *("test_devices.py", "test_rewards_math.py", "test_code.py", "test_engine_devices.py"),
    *("test_pipeline_kills.py", "test_bench.py", "test_rl_resume.py", "test_sandbox.py"),
)
"""The files that take longest, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first: no worker is to wait at the end for one of them."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def shared_root(factory: pytest.TempPathFactory) -> Path:
    """Return the temporary folder that all workers have in common."""
    root = factory.getbasetemp()
    return root.parent if IS_WORKER else root


@contextmanager
def only_one(lock: Path) -> Generator[None]:
    """Hold a lock among the workers; wait for it if need be."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first worker to ask for it fills; the others wait until it has."""
    root = shared_root(factory)
    folder, made = root / name, root / f"{name}.made"
    with only_one(root / f"{name}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def tiny_llama4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama 4 checkpoint with tokenizer and chat template; do not write into it."""
    from posttrain.models.tiny import write_tiny_llama4

    return made_once(tmp_path_factory, "tiny-llama4", write_tiny_llama4)


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
def tiny_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and its finished run in `run`; do not write into it."""
    return made_once(
        tmp_path_factory,
        "tiny",
        lambda folder: make_tiny_run(request.getfixturevalue("run_server"), folder),
    )


@pytest.fixture
def spanning_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Permission for a vLLM on the CPU that spans training processes, one at a time.

    The memory that they share has the same name in every such engine of the machine, and outlives
    processes that do not end in the ordinary way.
    """
    with only_one(shared_root(tmp_path_factory) / "spanning-engine.lock"):
        before = set(SHARED_MEMORY.glob("-tp:*"))
        yield
        for left in set(SHARED_MEMORY.glob("-tp:*")) - before:
            left.unlink()
