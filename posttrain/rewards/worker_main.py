"""The program of a warm process: one JSON request a line in, one JSON answer a line out.

The last argument is JSON: the module that answers, its memory limit in bytes, the descriptor of the
socket on which the parent asks for workers, and the argument of `load_worker` for own code.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def main() -> None:
    """Load the module, then fork a worker for every connection that the parent hands over."""
    settings: dict[str, Any] = json.loads(sys.argv[-1])
    own_code, memory_bytes = settings["own_code"], settings["memory_bytes"]
    control = socket.socket(fileno=settings["control"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Children that end are reaped by the system.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    if own_code is None:
        logging.disable(logging.CRITICAL)
    try:
        module = importlib.import_module(settings["module"])
        loaded = module.load_worker(*([] if own_code is None else [own_code]))
    except (Exception, SystemExit) as error:
        _say(control, _failure(error))
        return
    gc.freeze()
    limits = {resource.RLIMIT_AS: memory_bytes, resource.RLIMIT_CORE: 0}
    if own_code is None:
        limits[resource.RLIMIT_FSIZE] = 0
    else:
        limits[resource.RLIMIT_AS] += _address_space()
    _say(control, {"ready": loaded})
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        with socket.socket(fileno=descriptors[0]) as connection:
            try:
                pid = os.fork()
            except OSError as error:
                _say(control, {"error": str(error)})
                continue
            if pid == 0:
                control.close()
                _serve(connection, module.answer_request, limits)
                os._exit(0)
        _say(control, {"pid": pid})


def _address_space() -> int:
    """Return the bytes that this process has mapped; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _serve(
    connection: socket.socket,
    answer: Callable[[dict[str, Any]], Any],
    limits: Mapping[int, int],
) -> None:
    """Answer requests until the connection ends."""
    for what, most in limits.items():
        # Some systems refuse a limit; the wall limit still holds.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (most, resource.getrlimit(what)[1]))
    for line in connection.makefile("rb"):
        request = json.loads(line)
        # Should the parent be gone, a hanging request still ends, with the process.
        signal.alarm(int(request["seconds"]) + 2)
        try:
            reply = {"value": answer(request)}
        except (Exception, SystemExit) as error:
            reply = _failure(error)
        signal.alarm(0)
        _say(connection, reply)


def _failure(error: BaseException) -> dict[str, Any]:
    kind = "out_of_memory" if isinstance(error, MemoryError) else "verifier_failed"
    return {"error": f"{type(error).__name__}: {error}", "kind": kind}


def _say(connection: socket.socket, reply: dict[str, Any]) -> None:
    connection.sendall(json.dumps(reply).encode() + b"\n")
