"""Run each stage in a process of its own, so that its memory is given back to the system.

On CUDA, a training stage is started by `accelerate launch`. Without, accelerate starts a single
process whatever the number asked for: several processes are therefore started by torchrun, with the
FSDP settings that accelerate would have passed on. On Linux without CUDA, a stage that loads models
is forked from a process that has done the imports (warm.py).
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from posttrain import errors
from posttrain.errors import Interrupted, PosttrainError, SetupError
from posttrain.pipeline.environment import has_cuda, num_cpus
from posttrain.pipeline.stage import Stage, StageContext
from posttrain.pipeline.warm import PRELOADED, WarmProcess, exit_code
from posttrain.progress import PROGRESS_FILE_VARIABLE, note
from posttrain.recipe.schema import Recipe
from posttrain.tables import read_json, write_bytes, write_json

RESULT = "result.json"
ERROR = "error.json"
CALL = "call.json"
PROGRESS = "progress.json"
PARENT_VARIABLE = "POSTTRAIN_RUN_PID"

QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CONFIGURE_LOGGING": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore",
}
"""Environment variables of stage processes; what the user has set goes before."""

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}
"""Environment variables that keep freed memory in the C library's heap. Without CUDA the tensors of
a step lie there, and would otherwise be given back and faulted in again at every step."""


ACCELERATE_CONFIG = "accelerate.yaml"
"""Written to the stage's work folder where launch.strategy is fsdp."""

FSDP: Mapping[str, str] = {
    "fsdp_version": "2",
    # No class is named, so accelerate wraps the model's own `_no_split_modules`: decoder layers.
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_reshard_after_forward": "true",
    # Each process writes its part of a checkpoint; a full one would gather the frozen base too.
    "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    # The trainer's gradient_checkpointing decides.
    "fsdp_activation_checkpointing": "false",
    "fsdp_offload_params": "false",
    # Set later, in posttrain.models.sharded, which says why.
    "fsdp_cpu_ram_efficient_loading": "false",
}


class StageCrash(PosttrainError):
    """Error of a stage that a bug ended; its traceback is in a file."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StageResult:
    """Counts and peak memory of a finished stage."""

    counts: Mapping[str, float | int]
    peak_rss_bytes: int | None = None


Launcher = Callable[[Stage[Any], Any, StageContext], StageResult]
"""Run a row of the table with its section of the recipe."""


def launch_line(
    stage: Stage[Any], run_dir: Path, num_processes: int, *, strategy: str = "ddp"
) -> list[str]:
    """Return the command that runs one stage."""
    ours = ["-m", "posttrain.pipeline.stage_process", str(run_dir), stage.name]
    several = stage.is_training and num_processes > 1
    sharded = several and strategy == "fsdp"
    if stage.is_training and has_cuda():
        asked = ["-m", "accelerate.commands.launch", "--num_processes", str(num_processes)]
        if sharded:
            config = run_dir / "work" / stage.name / ACCELERATE_CONFIG
            asked = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
        elif several:
            asked.append("--multi_gpu")
        return [sys.executable, *asked, *ours]
    if several:
        count = f"--nproc_per_node={num_processes}"
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", count, *ours]
        told = [f"{name}={value}" for name, value in fsdp_environment().items()]
        return ["env", *told, *line] if sharded else line
    return [sys.executable, *ours]


def shown_launch_line(
    stage: Stage[Any], run_dir: Path, num_processes: int, *, strategy: str = "ddp"
) -> str:
    """Return the launch line as text to copy into a shell."""
    line = launch_line(stage, run_dir, num_processes, strategy=strategy)
    return shlex.join(["python" if word == sys.executable else word for word in line])


def accelerate_config(recipe: Recipe) -> str:
    """Return the configuration file for `accelerate launch`, as YAML."""
    lines = [
        "compute_environment: LOCAL_MACHINE",
        "distributed_type: FSDP",
        "num_machines: 1",
        f"num_processes: {recipe.launch.num_processes}",
        f"mixed_precision: {mixed_precision(recipe)!r}",
        "fsdp_config:",
        *(f"  {key}: {value}" for key, value in FSDP.items()),
    ]
    return "\n".join(lines) + "\n"


def mixed_precision(recipe: Recipe) -> str:
    """Return accelerate's `mixed_precision` for model.dtype."""
    return "bf16" if recipe.model.dtype == "bfloat16" else "no"


def fsdp_environment() -> dict[str, str]:
    """Return the environment variables that `accelerate launch` sets for accelerate_config."""
    return {"ACCELERATE_USE_FSDP": "true", **{key.upper(): value for key, value in FSDP.items()}}


def run_in_process(stage: Stage[Any], section: Any, context: StageContext) -> StageResult:
    """Run a stage in the calling process, as tests do."""
    with _set_environment({PROGRESS_FILE_VARIABLE: str(context.work_dir / PROGRESS)}):
        return StageResult(counts=stage.run(context, section))


@contextmanager
def launching(run_dir: Path, stages: Sequence[Stage[Any]]) -> Generator[Launcher]:
    """Yield a launcher that runs `stages` in processes of their own.

    Where one of them loads a model, on Linux without CUDA, they are forked from a process that has
    done the imports. A CUDA context would not survive a fork.
    """
    if has_cuda() or sys.platform != "linux" or not any(stage.loads_models for stage in stages):
        yield run_in_child
        return
    warm = WarmProcess(run_dir, _environment(), preloaded=PRELOADED)
    try:
        yield partial(run_in_child, warm=warm)
    finally:
        warm.close()


def run_in_child(
    stage: Stage[Any], section: Any, context: StageContext, *, warm: WarmProcess | None = None
) -> StageResult:
    """Run a stage in a process of its own and wait for it; fork it from `warm` if possible.

    The first SIGINT or SIGTERM is passed on, and the stage stops where its work is kept; the second
    kills the stage and this process. Raises what the stage raised, Interrupted after a signal,
    SetupError if the system killed the stage, and StageCrash for a bug.
    """
    work = context.work_dir
    for name in (RESULT, ERROR):
        (work / name).unlink(missing_ok=True)
    write_json(
        work / CALL,
        {
            "function": f"{stage.run.__module__}:{stage.run.__qualname__}",
            "key": context.key,
            "seed": context.seed,
            "inputs": [[name, str(path)] for name, path in context.inputs.items()],
            "work_dir": str(work),
            "out_dir": str(context.out_dir),
        },
    )
    if context.recipe.launch.strategy == "fsdp":
        write_bytes(work / ACCELERATE_CONFIG, accelerate_config(context.recipe).encode())
    with _passing_on() as signals:
        pid, wait, reap = _start(stage, context, warm)
        signals.send_to(pid)
        # It is reaped only after its group was killed, or the number could be another group's.
        code = wait()
    reap()
    if (work / RESULT).exists() and not signals.received:
        result = read_json(work / RESULT)
        return StageResult(counts=result["counts"], peak_rss_bytes=result["peak_rss_bytes"])
    if signals.received:
        raise Interrupted(f"stopped during {stage.name}; finished work is kept")
    raise _failure(stage, work, code)


def _start(
    stage: Stage[Any], context: StageContext, warm: WarmProcess | None
) -> tuple[int, Callable[[], int], Callable[[], object]]:
    """Start a stage; return its pid, and how to wait for its exit code and then to reap it."""
    launch = context.recipe.launch
    environment = _environment() | {PROGRESS_FILE_VARIABLE: str(context.work_dir / PROGRESS)}
    several = stage.is_training and launch.num_processes > 1
    if several and not has_cuda():
        environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cpus() // launch.num_processes)))
    if warm is not None and stage.loads_models and not several:
        with suppress(ConnectionError):  # it has died: a fresh process does as well, later
            return warm.fork(context.run_dir, stage.name, environment), warm.wait, warm.reap
    command = launch_line(stage, context.run_dir, launch.num_processes, strategy=launch.strategy)
    child = subprocess.Popen(command, env=environment, process_group=0)
    return child.pid, partial(exit_code, child.pid), child.wait


def _environment() -> dict[str, str]:
    """Return the environment of every process that this run starts."""
    memory = {} if has_cuda() else KEEP_MEMORY
    return {**QUIET, **memory, **os.environ, PARENT_VARIABLE: str(os.getpid())}


def _failure(stage: Stage[Any], work: Path, code: int) -> PosttrainError:
    with suppress(OSError, ValueError, KeyError):
        error = read_json(work / ERROR)
        kind = getattr(errors, error["type"], StageCrash)
        return kind(error["message"], hint=error["hint"])
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return SetupError(
            f"the system killed the {stage.name} stage, most likely for want of memory",
            hint="give it less to hold (a smaller batch, engine.kv_cache_gib, max_num_seqs) and "
            "run the same command again: finished work is kept",
        )
    return StageCrash(
        f"the {stage.name} stage ended with code {code} and left no message; what it printed is in "
        f"{output_log(work)}",
        hint="run the same command again; if it happens twice, it is a bug of posttrain",
    )


class _Signals:
    """Signals that arrive during a stage, and the process group that they are sent on to."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._group: int | None = None

    def send_to(self, group: int) -> None:
        """Set the group that gets the signals; it gets one that came earlier, too."""
        self._group = group
        if self.received:
            self.kill(signal.SIGINT)

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Interrupt the group at the first signal; kill it and exit at the second."""
        self.received.append(number)
        self.kill(signal.SIGINT if len(self.received) == 1 else signal.SIGKILL)
        if len(self.received) > 1:
            os.write(2, b"\nleft at once; run the same command again to resume\n")
            os._exit(Interrupted.exit_code)
        note("stopping; finished work is kept (once more: leave at once)")

    def kill(self, number: int) -> None:
        """Send a signal to the group, if there is one."""
        if self._group is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._group, number)


@contextmanager
def _passing_on() -> Generator[_Signals, None, None]:
    """Pass signals on inside; at the end kill what the stage left running, as engine workers."""
    signals = _Signals()
    try:
        with handling_signals(signals.handle):
            yield signals
    finally:
        signals.kill(signal.SIGKILL)


@contextmanager
def handling_signals(
    handle: Callable[[int, FrameType | None], object],
) -> Generator[None, None, None]:
    """Handle SIGINT and SIGTERM with `handle` inside; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _set_environment(values: Mapping[str, str]) -> Generator[None, None, None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def output_log(work: Path) -> Path:
    """Return the file for what libraries print during a stage; it outlives the work folder."""
    return work.with_name(f"{work.name}.log")


def read_progress(work: Path) -> Mapping[str, Any] | None:
    """Return the latest progress of a running stage; None without any."""
    try:
        value = json.loads((work / PROGRESS).read_text())
    except (OSError, ValueError):
        return None
    return {**value, "age_seconds": round(time.time() - value["time"], 1)}
