"""A run of every stage on a tiny random model: its recipe, its data, and a process that runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RECIPE = """\
name: tiny
seed: 3
model: {base: MODEL, dtype: float32, lora: {rank: 8, alpha: 16}}
engine: {kind: transformers, max_model_len: 128, max_num_seqs: 32}
sft:
  data: [{path: sft.jsonl, capability: letters, verifier: exact}]
  judge: judge.yaml
  pilot: {num_samples: 4, num_generations: 2, max_tokens: 4}
  prune: {drop_easiest: 0.25, require_check: false}
  trainer:
    max_steps: 24
    save_steps: 8
    per_device_train_batch_size: 8
    learning_rate: 2.0e-2
rl:
  data: [{path: rl.jsonl, capability: letters, verifier: exact}]
  curriculum: curricula/adaptive.yaml
  trainer:
    num_generations: 4
    max_steps: 4
    save_steps: 1
    per_device_train_batch_size: 16
    max_completion_length: 4
    learning_rate: 1.0e-4
dpo:
  pairs: {max_pairs: 8, max_length_ratio: 4.0}
  trainer: {max_steps: 4, save_steps: 2, per_device_train_batch_size: 2, learning_rate: 1.0e-3}
eval: {heldout_size: 6, num_generations: 2, max_tokens: 4, pass_at: [2]}
"""


class RunServer:
    """The other end of run_server.py: a process that has everything imported and forks runs."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "server.log"
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("run_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # PEFT writes sets in the order of their hashes, and two processes make one tiny run.
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )

    def ask(self, **wanted: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({**wanted, "log": str(self.log)}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def run(self, folder: Path, *, kill_at: str = "", overrides: tuple[str, ...] = ()) -> None:
        """Run the recipe in `folder`; with `kill_at` it must die there, else it must finish."""
        self.run_recipe(
            folder / "recipe.yaml", folder / "run", kill_at=kill_at, overrides=overrides
        )

    def run_recipe(
        self,
        recipe: Path,
        run_dir: Path,
        *,
        kill_at: str = "",
        overrides: Sequence[str] = (),
        until: str | None = None,
    ) -> None:
        """Run a recipe; with `kill_at` it must die there, else it must finish."""
        answer = self.ask(
            recipe=str(recipe),
            run_dir=str(run_dir),
            overrides=list(overrides),
            until=until,
            kill_at=kill_at,
        )
        said = self.log.read_text()[-4000:]
        if kill_at:
            assert answer["signal"] == signal.SIGKILL, f"{kill_at} was never reached:\n{said}"
        else:
            assert answer["code"] == 0, said

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=20)


def make_tiny_run(server: RunServer, folder: Path) -> Path:
    """Write model, recipe and data into `folder`, run every stage, and return `folder`."""
    assert server.ask(model=str(folder / "model"))["code"] == 0
    (folder / "recipe.yaml").write_text(RECIPE.replace("MODEL", str(folder / "model")))
    (folder / "judge.yaml").write_text("kind: answer_likelihood\nscale_nats: 6\nbatch_size: 16\n")
    for name, word, num_rows in (("sft", "Pick", 40), ("rl", "Choose", 30)):
        rows = [
            json.dumps({"question": f"{word} {i}: a or b?", "answer": "ab"[i * 7 % 5 % 2]})
            for i in range(num_rows)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    server.run(folder)
    return folder
