"""Fork stages from a process that has imported torch, TRL and vLLM.

The imports take ten seconds of processor time, once per run instead of once per stage. The process
computes nothing itself, so it holds no engine and no thread pool that a fork would break.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

PRELOADED = (
    *("posttrain.judge", "posttrain.sft", "posttrain.rl", "posttrain.dpo"),
    *(["posttrain.engines.vllm"] if importlib.util.find_spec("vllm") else []),
)
"""Modules whose imports cover those of every stage."""
LOG = "imports.log"
"""File in the work folder for what the imports print."""


class WarmProcess:
    """Client of the process that stages are forked from; runs one stage at a time."""

    def __init__(
        self, run_dir: Path, environment: Mapping[str, str], *, preloaded: Sequence[str]
    ) -> None:
        """Start the process, which imports in the background."""
        self._control, theirs = socket.socketpair()
        self._buffer = b""
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "posttrain.pipeline.stage_process", "--serve"),
                    *(str(theirs.fileno()), str(run_dir / "work" / LOG), *preloaded),
                ],
                env=environment,
                pass_fds=[theirs.fileno()],
                # Ctrl-C is for the run, which passes it on to the stage.
                process_group=0,
            )

    def fork(self, run_dir: Path, stage: str, environment: Mapping[str, str]) -> int:
        """Start a stage in a process group of its own; return its pid, which is the group's.

        Raises ConnectionError where the process has died.
        """
        try:
            self._send({"run_dir": str(run_dir), "stage": stage, "environment": dict(environment)})
        except OSError as error:
            raise ConnectionError("the warm process has died") from error
        return self._receive()["pid"]

    def wait(self) -> int:
        """Wait for the stage to end; return its exit code, negative for a signal.

        The pid stays reserved until `reap`. If the process itself is killed, so counts the stage.
        """
        try:
            return self._receive()["code"]
        except ConnectionError:
            return -signal.SIGKILL

    def reap(self) -> None:
        """Release the pid of a stage that has ended."""
        with suppress(ConnectionError):
            self._send({"reap": True})

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._control.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        self._control.sendall(json.dumps(message).encode() + b"\n")

    def _receive(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            chunk = self._control.recv(1 << 16)
            if not chunk:
                raise ConnectionError("the warm process has died")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)


def exit_code(pid: int) -> int:
    """Wait for a child without reaping it; return its exit code, negative for a signal.

    Without os.waitid, which macOS has from Python 3.13 on, the child is reaped.
    """
    if not hasattr(os, "waitid"):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
