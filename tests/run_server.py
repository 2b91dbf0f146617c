"""A process that has torch and TRL imported and computes nothing: it forks a child per run.

Importing takes longer than all stages of a tiny model; a fork starts with everything imported.
Reads one JSON object per line: {"recipe", "overrides", "run_dir", "kill_at"}; answers with one line
{"signal", "code", "seconds"}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Serve until standard input ends."""
    os.environ.update(
        OMP_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        HF_DATASETS_DISABLE_PROGRESS_BARS="1",
        TOKENIZERS_PARALLELISM="false",
        TRL_EXPERIMENTAL_SILENCE="1",
    )
    import posttrain.data
    import posttrain.dpo
    import posttrain.judge
    import posttrain.report
    import posttrain.rl
    import posttrain.sft  # noqa: F401  (imported so that the children need not)

    for line in sys.stdin:
        wanted = json.loads(line)
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _run(wanted)
        _, status = os.waitpid(child, 0)
        answer = {
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "seconds": round(time.monotonic() - started, 2),
        }
        print(json.dumps(answer), flush=True)


def _run(wanted: dict[str, Any]) -> None:
    # What the child prints would be read as an answer.
    log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        import torch

        from posttrain.models.tiny import write_tiny_llama4
        from posttrain.pipeline import run, run_in_process
        from posttrain.recipe import load_recipe

        torch.set_num_threads(1)
        os.fsync = lambda _: None  # a killed process loses nothing that it wrote
        if "model" in wanted:
            write_tiny_llama4(Path(wanted["model"]))
        else:
            if wanted["kill_at"]:
                os.environ["POSTTRAIN_KILL_AT"] = wanted["kill_at"]
            loaded = load_recipe(Path(wanted["recipe"]), wanted["overrides"])
            run(loaded, Path(wanted["run_dir"]), launcher=run_in_process)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
