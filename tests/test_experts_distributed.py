"""Two processes, DDP and FSDP2 over gloo, give the loss and gradients of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_experts import adapted, batch, gradients

KINDS = ("ddp", "fsdp2")


@pytest.fixture(scope="module")
def trained(tiny_llama4: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with loss and gradients of two processes, a file for each kind."""
    folder = tmp_path_factory.mktemp("trained")
    script = Path(__file__).parent / "distributed_experts.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(script), str(tiny_llama4), str(folder), *KINDS],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_lora_experts_in_two_processes_train_as_in_one(
    trained: Path, tiny_llama4: Path, kind: str
) -> None:
    found = torch.load(trained / f"{kind}.pt")
    model = adapted(tiny_llama4)
    ids = batch()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.testing.assert_close(found["loss"], loss.detach())
    expected = gradients(model)
    assert expected.keys() == found["gradients"].keys()
    assert any(".experts.lora_B" in name for name in expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found["gradients"][name], gradient, atol=1e-6, rtol=1e-4, msg=name
        )
