"""CUDA in a forked process: which calls before the fork break it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial

from benchmarks.gpu.cases import Case, Found, NotMeasured, Setting

BEFORE_THE_FORK: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "nothing": ("", {}),
    "import torch, transformers, peft, accelerate, trl": (
        "import transformers, peft, accelerate, trl",
        {},
    ),
    "import posttrain.rl, posttrain.engines": ("import posttrain.rl, posttrain.engines", {}),
    "torch.cuda.is_available()": ("torch.cuda.is_available()", {}),
    "torch.cuda.is_available(), PYTORCH_NVML_BASED_CUDA_CHECK=1": (
        "torch.cuda.is_available()",
        {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
    ),
    "torch.cuda.device_count()": ("torch.cuda.device_count()", {}),
    "torch.cuda.device_count(), PYTORCH_NVML_BASED_CUDA_CHECK=1": (
        "torch.cuda.device_count()",
        {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
    ),
    "torch.cuda.get_device_capability()": ("torch.cuda.get_device_capability()", {}),
    "accelerate's PartialState()": ("import accelerate; accelerate.PartialState()", {}),
    "torch.cuda.init()": ("torch.cuda.init()", {}),
    "a tensor on the device": ("torch.zeros(1, device='cuda')", {}),
}

SCENARIO = """
import json, multiprocessing, sys, torch

def work(device, queue):
    try:
        queue.put(["works", float(torch.ones(2, device=device).sum())])
    except Exception as error:
        queue.put([type(error).__name__, str(error).splitlines()[0]])

if __name__ == "__main__":
    touch, device, method = sys.argv[1:]
    exec(touch)
    initialised = torch.cuda.is_initialized()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=work, args=(device, queue))
    child.start()
    outcome = queue.get(timeout=60)
    child.join()
    print(json.dumps([initialised, *outcome]))
"""


def cases(setting: Setting) -> Mapping[str, Case]:
    """Each call followed by a fork; the worst of them followed by a spawn."""
    found: dict[str, Case] = {
        f"fork after: {name}": partial(scenario, setting, touch, environment, "fork")
        for name, (touch, environment) in BEFORE_THE_FORK.items()
    }
    found["spawn after: torch.cuda.init()"] = partial(
        scenario, setting, "torch.cuda.init()", {}, "spawn"
    )
    return found


def scenario(setting: Setting, touch: str, environment: Mapping[str, str], method: str) -> Found:
    """Run the call in a fresh process and use the device in a child of it."""
    if not setting.is_cuda:
        touch = touch if touch.startswith("import") else ""
    script = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"posttrain-start-{os.getpid()}.py")
    with open(script, "w") as file:
        file.write(SCENARIO)
    try:
        done = subprocess.run(
            [sys.executable, script, touch, setting.device, method],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        os.unlink(script)
    if done.returncode != 0:
        raise NotMeasured(done.stderr.strip().splitlines()[-1])
    initialised, outcome, detail = json.loads(done.stdout.splitlines()[-1])
    state = "initialised" if initialised else "not initialised"
    text = "the child works" if outcome == "works" else f"the child fails: {outcome}: {detail}"
    return Found(
        text=f"CUDA {state} in the parent; {text}",
        figures={"initialised": initialised, "outcome": outcome, "detail": detail},
    )
