"""Run one stage in this process: `python -m posttrain.pipeline.stage_process RUN_DIR STAGE`.

With `--serve` it is the process that stages are forked from (posttrain.pipeline.warm).
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil

from posttrain import errors, sandbox
from posttrain.errors import Interrupted, Locked, PosttrainError
from posttrain.pipeline.failure import bug_message, explain, write_crash
from posttrain.pipeline.launch import CALL, ERROR, PARENT_VARIABLE, RESULT, output_log
from posttrain.pipeline.stage import Counts, StageContext
from posttrain.pipeline.stages import STAGES
from posttrain.pipeline.warm import exit_code
from posttrain.progress import divert_output, is_main_process
from posttrain.recipe.schema import Recipe
from posttrain.rewards import close_workers
from posttrain.tables import read_json, write_json

STAGE_LOCK = "stage.lock"
SECONDS_TO_WAIT_FOR_AN_ORPHAN = 30.0


def main(arguments: list[str]) -> int:
    """Run the stage that call.json describes; return 0, or the exit code of its error."""
    run_dir, stage = Path(arguments[0]), arguments[1]
    work = run_dir / "work" / stage
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    _end_with(os.environ.get(PARENT_VARIABLE))
    try:
        with _only_one(run_dir):
            divert_output(output_log(work))
            function, context = _read_call(run_dir, stage)
            sandbox.use(context.recipe.sandbox)
            row = next(row for row in STAGES if row.name == stage)
            counts: Counts = function(context, row.section(context.recipe))
            if is_main_process():
                write_json(
                    work / RESULT, {"counts": dict(counts), "peak_rss_bytes": _peak_rss_bytes()}
                )
        return 0
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        return _report(error, run_dir, stage, work)


def _read_call(run_dir: Path, stage: str) -> tuple[Any, StageContext]:
    job = read_json(run_dir / "work" / "job.json")
    call = read_json(run_dir / "work" / stage / CALL)
    module, _, name = call["function"].partition(":")
    context = StageContext(
        stage=stage,
        key=call["key"],
        recipe=Recipe.model_validate(job["recipe"]),
        recipe_path=Path(job["recipe_path"]),
        run_dir=run_dir,
        seed=call["seed"],
        inputs={name: Path(path) for name, path in call["inputs"]},
        work_dir=Path(call["work_dir"]),
        out_dir=Path(call["out_dir"]),
    )
    return getattr(importlib.import_module(module), name), context


def _report(error: BaseException, run_dir: Path, stage: str, work: Path) -> int:
    """Write error.json for the run; of several processes the first one writes it."""
    known = explain(error, run_dir)
    if known is not None:
        kind, message, hint, code = _kind(known), known.message, known.hint, known.exit_code
    else:
        crash = write_crash(run_dir, stage, error, output=output_log(work))
        message, hint = bug_message(f"the {stage} stage", error, crash)
        kind, code = "StageCrash", 1
    value = {"type": kind, "message": message, "hint": hint}
    with suppress(OSError), (work / ERROR).open("x") as file:
        json.dump(value, file)
    return code


def _kind(error: PosttrainError) -> str:
    """Return the name of the error's class in posttrain.errors, or of its base class there."""
    return next(c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__)


@contextmanager
def _only_one(run_dir: Path) -> Generator[None, None, None]:
    """Wait for a stage process that outlived its run, as it writes to the same folders."""
    if not is_main_process():
        yield
        return
    deadline = time.monotonic() + SECONDS_TO_WAIT_FOR_AN_ORPHAN
    with (run_dir / STAGE_LOCK).open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Locked(
                        f"a stage process of an earlier run still works in {run_dir}",
                        hint="end it (ps aux | grep posttrain), then the same command again",
                    ) from None
                time.sleep(0.1)
        yield


def _end_with(parent: str | None) -> None:
    """Exit once the process that started this one is gone."""
    if parent is None:
        return

    def watch() -> NoReturn:
        try:
            run = psutil.Process(int(parent))
            while run.is_running() and run.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.5)
        except psutil.NoSuchProcess:
            pass
        os._exit(Interrupted.exit_code)

    threading.Thread(target=watch, name="follow-the-run", daemon=True).start()


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    # A second signal must not interrupt the cleanup.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _peak_rss_bytes() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def serve(control: socket.socket, log: Path, preloaded: Sequence[str]) -> None:
    """Import `preloaded`; then fork a stage at each request, until the run is gone."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to every process; the run ends this one
    divert_output(log)
    for name in preloaded:
        with suppress(Exception):  # raised again by the stage that needs the module
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or a stage's first collection would copy every page that holds an object
    with suppress(ConnectionError), control.makefile("rw") as lines:
        for line in lines:
            asked = json.loads(line)
            pid = os.fork()
            if pid == 0:
                os.close(control.fileno())
                _end_as_a_stage(asked)
            with suppress(OSError):  # the stage has done so itself, or has ended
                os.setpgid(pid, pid)
            print(json.dumps({"pid": pid}), file=lines, flush=True)
            print(json.dumps({"code": exit_code(pid)}), file=lines, flush=True)
            lines.readline()  # the run has killed what was left of the process group
            os.waitpid(pid, 0)


def _end_as_a_stage(asked: Mapping[str, Any]) -> NoReturn:
    code = 1
    try:
        os.setpgid(0, 0)
        # Keeps variables that the imports set, some of which vLLM reads later.
        os.environ.update(asked["environment"])
        code = main([asked["run_dir"], asked["stage"]])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        # No interpreter exit: most of its handlers are those of the parent process's imports.
        with suppress(Exception):
            close_workers()
            sandbox.close_sandbox()
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        _fd, _log, *_preloaded = sys.argv[2:]
        serve(socket.socket(fileno=int(_fd)), Path(_log), _preloaded)
    else:
        sys.exit(main(sys.argv[1:]))
