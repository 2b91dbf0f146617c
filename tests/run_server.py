"""A process that has torch and TRL imported and computes nothing: it forks a child per run.

Importing takes longer than all stages of a tiny model; a fork starts with everything imported.
Reads one JSON object per line: {"recipe", "overrides", "run_dir", "until", "kill_at"}; answers with
one line {"signal", "code", "seconds"}.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from posttrain.pipeline import Stage
    from posttrain.pipeline.launch import StageResult
    from posttrain.pipeline.stage import StageContext


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


def run_in_forks(stage: Stage[Any], section: Any, context: StageContext) -> StageResult:
    """Run a stage in this process, or where torchrun would start it in several, in a fork each."""
    from posttrain.pipeline.launch import StageResult, fsdp_environment, run_in_process

    asked = context.recipe.launch
    if not stage.is_training or asked.num_processes == 1:
        return run_in_process(stage, section, context)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {
        **(fsdp_environment() if asked.strategy == "fsdp" else {}),
        "WORLD_SIZE": str(asked.num_processes),
        "LOCAL_WORLD_SIZE": str(asked.num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks: list[int] = []
    for rank in range(asked.num_processes):
        ranks.append(os.fork())
        if ranks[-1] == 0:
            os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
            _run_rank(stage, section, context)
    ended = _wait_for_all(ranks)
    if any(os.WIFSIGNALED(status) for status in ended):
        os.kill(os.getpid(), signal.SIGKILL)
    assert not any(ended), ended
    return StageResult(counts={})


def _wait_for_all(ranks: list[int]) -> list[int]:
    """Return how processes ended; as torchrun does, end those that outlive one that failed."""
    ended: list[int] = []
    left = list(ranks)
    while left:
        child, status = os.waitpid(-1, 0)
        left.remove(child)
        ended.append(status)
        if status == 0:
            continue
        for other in left:
            found, status = os.waitpid(other, os.WNOHANG)
            if found:
                ended.append(status)
            else:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
        break
    return ended


def _run_rank(stage: Stage[Any], section: Any, context: StageContext) -> NoReturn:
    from posttrain.pipeline.launch import run_in_process

    try:
        run_in_process(stage, section, context)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _run(wanted: dict[str, Any]) -> None:
    # What the child prints would be read as an answer.
    log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        import torch

        from posttrain.models.tiny import write_tiny_llama4
        from posttrain.pipeline import run
        from posttrain.recipe import load_recipe

        torch.set_num_threads(1)
        os.fsync = lambda _: None  # a killed process loses nothing that it wrote
        if "model" in wanted:
            write_tiny_llama4(Path(wanted["model"]))
        else:
            if wanted["kill_at"]:
                os.environ["POSTTRAIN_KILL_AT"] = wanted["kill_at"]
            loaded = load_recipe(Path(wanted["recipe"]), wanted["overrides"])
            folder = Path(wanted["run_dir"])
            run(loaded, folder, launcher=run_in_forks, until=wanted.get("until"))
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
